"""Folders of image files."""

import os
import unicodedata
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tfkd_fast.data import (
    DataIdentity,
    DataSettings,
    ImageSet,
    ImagesSealed,
    open_dataset,
    sealed_test_images,
    split_holdout,
)
from tfkd_fast.data.datasets.base import PartOfDataset
from tfkd_fast.data.split import split_names
from tfkd_fast.errors import UserError

Files = dict[str, int]
"""Path below the root -> grey level."""

FILES: Files = {
    "train/bee/b.png": 10,
    "train/bee/a.PNG": 20,
    "train/ant/c.bmp": 30,
    "train/cow/d.webp": 40,
    "test/cow/e.png": 50,
    "test/ant/f.png": 60,
}


def write(root: Path, files: Files) -> None:
    for name, level in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        options = {"lossless": True} if file.suffix == ".webp" else {}
        Image.new("RGB", (40, 30), (level, level, level)).save(file, **options)


def settings(root: Path, image_size: int = 32) -> DataSettings:
    return DataSettings(dataset="folder", root=str(root), image_size=image_size)


@pytest.mark.parametrize("size", [32, 64])
def test_classes_and_files_are_in_the_order_of_their_names(tmp_path: Path, size: int) -> None:
    write(tmp_path, FILES)
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "bee" / "._b.png").write_text("left by a file manager")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "README").write_text("no class")
    dataset = open_dataset(settings(tmp_path, size))
    assert dataset.classes == ["ant", "bee", "cow"]
    assert dataset.image_shape == (3, size, size)
    assert dataset.flip
    assert f"the largest centred square, upright, resized to {size} x {size}" in dataset.reading
    train, test = dataset.read_train(), dataset.read_test()
    assert train.all_images().shape == (4, 3, size, size)
    assert train.all_images()[:, 0, 0, 0].tolist() == [30, 20, 10, 40]
    assert train.labels.tolist() == [0, 1, 1, 2]
    assert test.all_images()[:, 0, 0, 0].tolist() == [60, 50]
    assert test.labels.tolist() == [0, 2]  # numbered as in train/
    assert dataset.mean == pytest.approx([25 / 255] * 3)
    assert dataset.std == pytest.approx([np.std([10, 20, 30, 40]) / 255] * 3)


def test_training_opens_no_test_image(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    (tmp_path / "test/cow/e.png").write_bytes(b"damaged")
    dataset = open_dataset(settings(tmp_path))
    dataset.read_train().all_images()
    assert len(dataset.mean) == 3
    with pytest.raises(UserError, match=r"the image .*test/cow/e.png"):
        dataset.read_test().all_images()


@pytest.mark.parametrize(
    ("remove", "add", "sentence"),
    [
        ("train", [], r"there is no folder .*/train: images belong into train/CLASS/"),
        ("test", [], r"there is no folder .*/test"),
        ("train", ["train/"], r".*/train holds no class"),
        ("train/ant", ["train/ant/"], r".*/train/ant holds no image \(.bmp, .*\)"),
        ("test/ant", ["test/ant/"], r".*/test/ant holds no image"),
        ("train/ant", [], r"class 'ant' is in .*/test but not in .*/train"),
    ],
)
def test_a_fault_is_one_sentence(tmp_path: Path, remove: str, add: list[str], sentence: str) -> None:
    write(tmp_path, {name: level for name, level in FILES.items() if not name.startswith(remove)})
    for folder in add:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match=sentence) as caught:
        open_dataset(settings(tmp_path))
    assert "\n" not in str(caught.value)


def test_one_class_is_too_few(tmp_path: Path) -> None:
    write(tmp_path, {"train/ant/a.png": 1, "test/ant/a.png": 1})
    with pytest.raises(UserError, match=r"/train holds the one class 'ant': add another"):
        open_dataset(settings(tmp_path))


def test_a_damaged_training_image_is_named(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    (tmp_path / "train/bee/b.png").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"the image .*train/bee/b.png is damaged .* \(no image format that Pillow knows\)",
    ):
        open_dataset(settings(tmp_path)).mean  # noqa: B018  # the first that looks at pixels


FLAT: Files = {f"{name}/{i:02}.png": i for name, count in (("ant", 12), ("bee", 5), ("cow", 2)) for i in range(count)}


def parts(root: Path) -> tuple[set[str], set[str]]:
    """Class and file name of the training images and of the test images."""
    dataset = open_dataset(settings(root))
    both = (dataset.read_train(), dataset.read_test())
    for part in both:
        assert [dataset.classes[label] for label in part.labels] == [file.parent.name for file in part.files]
    train, test = ({f"{file.parent.name}/{file.name}" for file in part.files} for part in both)
    return train, test


def test_a_folder_without_parts_is_split_class_by_class_and_says_so(tmp_path: Path) -> None:
    write(tmp_path, FLAT)
    train, test = parts(tmp_path)
    assert train | test == set(FLAT)
    assert not train & test
    assert [sum(name.startswith(one) for name in test) for one in ("ant", "bee", "cow")] == [2, 1, 1]
    dataset = open_dataset(settings(tmp_path))
    assert dataset.parts == (
        "there are no train/ and test/, so 20 % of the images of each class are the test set: 4 of 19, chosen by the "
        "names of the files with seed 0"
    )
    chosen = {  # the rule, written out
        name
        for one, count in (("ant", 2), ("bee", 1), ("cow", 1))
        for name in sorted(
            (file for file in FLAT if file.startswith(one)), key=lambda file: sha256(f"0 {file}".encode()).digest()
        )[:count]
    }
    assert test == chosen


def test_what_is_not_read_of_a_folder_without_parts_is_named(tmp_path: Path) -> None:
    write(tmp_path, FLAT | {"sheet.png": 1, "ant/more/a.png": 2})
    assert open_dataset(settings(tmp_path)).parts.endswith(
        "with seed 0; not read: 1 image in no class folder, 1 folder inside of class folders"
    )


def test_a_split_depends_on_names_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write(first, FLAT)
    write(second, {name: 99 - level for name, level in reversed(FLAT.items())})  # other pixels, in another order
    assert parts(first) == parts(second)
    assert open_dataset(settings(first)).fingerprint == open_dataset(settings(first)).fingerprint
    _, before = parts(first)
    write(first, {f"bee/new {i}.png": 0 for i in range(2)})
    _, after = parts(first)
    assert {name for name in after if "bee" not in name} == {name for name in before if "bee" not in name}


def test_names_that_differ_in_their_composition_only_are_split_alike() -> None:
    composed = [f"\u00e9t\u00e9/{i}.png" for i in range(20)]
    decomposed = [unicodedata.normalize("NFD", name) for name in composed]
    assert composed != decomposed
    assert split_names(composed, 0.2) == split_names(decomposed, 0.2)
    assert sum(split_names(["a/\udcff.png", "a/b.png"], 0.2)) == 1  # bytes that are no text


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_without_a_test_part_the_validation_part_is_tested_and_it_says_so(tmp_path: Path, name: str) -> None:
    write(tmp_path, {file.replace("test/", f"{name}/"): level for file, level in FILES.items()})
    dataset = open_dataset(settings(tmp_path))
    assert dataset.parts.startswith(f"there is no test/, so the images of {name}/ are the test set; what is held out ")
    assert dataset.read_test().all_images()[:, 0, 0, 0].tolist() == [60, 50]
    assert len(dataset.read_train()) == 4


HELD_OUT: Files = {"val/ant/g.png": 70, "val/ant/h.png": 80, "val/cow/i.png": 90}


def greys(images: ImageSet) -> list[int]:
    return images.all_images()[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_validation_part_is_held_out_beside_a_test_part_and_it_says_so(tmp_path: Path, name: str) -> None:
    write(tmp_path, FILES | {file.replace("val/", f"{name}/"): level for file, level in HELD_OUT.items()})
    dataset = open_dataset(settings(tmp_path))
    assert dataset.parts == f"the images of {name}/ are what is held out"
    fit, held_out = split_holdout(dataset.read_train(), 0.1)
    assert (greys(fit), fit.labels.tolist()) == ([30, 20, 10, 40], [0, 1, 1, 2])
    assert (greys(held_out), held_out.labels.tolist()) == ([70, 80, 90], [0, 0, 2])
    assert greys(dataset.read_test()) == [60, 50]
    all_of_them = open_dataset(settings(tmp_path).model_copy(update={"holdout": 0.0}))
    assert all_of_them.parts == f"the images of {name}/ are trained on, too, because data.holdout is 0"
    assert len(all_of_them.read_train()) == 7
    assert all_of_them.fingerprint == dataset.fingerprint
    with pytest.raises(UserError, match=rf"data.holdout is 0.2, but what is held out are the images of {name}/: leave"):
        open_dataset(settings(tmp_path).model_copy(update={"holdout": 0.2}))


def test_a_part_of_a_folder_holds_out_its_part_of_the_validation_images(tmp_path: Path) -> None:
    write(tmp_path, FILES | HELD_OUT)
    few = open_dataset(settings(tmp_path).model_copy(update={"per_class": 1}))
    fit, held_out = split_holdout(few.read_train(), 0.1)
    assert (fit.labels.tolist(), greys(held_out)) == ([0, 1, 2], [70, 80, 90])
    some = open_dataset(settings(tmp_path).model_copy(update={"classes": ("bee", "cow")}))
    fit, held_out = split_holdout(some.read_train(), 0.1)
    assert (greys(fit), greys(held_out), held_out.labels.tolist()) == ([20, 10, 40], [90], [1])
    for image in (tmp_path / "val" / "cow").iterdir():
        image.unlink()
    (tmp_path / "val" / "cow").rmdir()
    none = open_dataset(settings(tmp_path).model_copy(update={"classes": ("bee", "cow")}))
    with pytest.raises(UserError, match=r"^no image that this data set holds out shows a class of data\.classes: add "):
        split_holdout(none.read_train(), 0.1)


def test_an_image_that_goes_from_one_part_to_another_makes_another_data_set(tmp_path: Path) -> None:
    """Though all images and labels keep their order."""
    write(tmp_path, FILES | {"train/cow/z.png": 70, "val/cow/g.png": 80})
    seen = []
    for _ in range(2):
        dataset = open_dataset(settings(tmp_path))
        seen.append((greys(dataset.read_train()), dataset.read_train().labels.tolist(), dataset.fingerprint))
        if not seen[1:]:
            (tmp_path / "train/cow/z.png").rename(tmp_path / "val/cow/a.png")
    assert seen[0][:2] == seen[1][:2]
    assert seen[0][2] != seen[1][2]


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    assert open_dataset(settings(tmp_path)).parts == ""
    write(tmp_path, {"extra/h.png": 2})
    assert open_dataset(settings(tmp_path)).parts == "not read: extra/"
    write(tmp_path, {"train/ant/more/i.png": 1, "train/j.png": 2, "test/k.png": 3})
    words = "not read: extra/, 2 images in no class folder, 1 folder inside of class folders"
    assert open_dataset(settings(tmp_path)).parts == words
    assert PartOfDataset(
        open_dataset(settings(tmp_path)), ["ant"], read_train=lambda: None, read_test=lambda: None
    ).parts


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["train/ant/a.png", "train/bee/b.png"], r"no folder .*/test and none of val, .*name .*/train as --data-root"),
        (["train/ant/a.png", "val/ant/b.png", "valid/ant/c.png"], r"both val/ and valid/ might be the test set"),
        (
            ["train/ant/a.png", "test/ant/b.png", "val/ant/c.png", "valid/ant/d.png"],
            r"both val/ and valid/ of .* held out",
        ),
        (
            ["train/ant/a.png", "train/bee/a.png", "test/ant/b.png", "val/cow/c.png"],
            r"class 'cow' is in .*/val but not",
        ),
        (["test/ant/a.png", "test/bee/b.png"], r"there is no folder .*/train"),
        (["ant/a.png", "ant/b.png", "test/c.png"], r"there is no folder .*/train"),
        (["train/a.png", "test/b.png"], r"/train holds no class"),
        (["Training/ant/a.png", "Testing/ant/b.png"], r"/Testing holds folders and no image: name the parts"),
        (["ant/a.png", "ant/b.png", "bee/c.png"], r"/bee holds one image, .* is split, class by class: add another"),
        (["ant/a.png", "ant/b.png"], r"holds the one class 'ant'"),
        (["a.png"], r"holds no class: images belong into a folder of their class's name"),
    ],
)
def test_a_layout_that_may_be_meant_in_two_ways_is_refused(tmp_path: Path, files: list[str], sentence: str) -> None:
    write(tmp_path, dict.fromkeys(files, 0))
    with pytest.raises(UserError, match=sentence) as caught:
        open_dataset(settings(tmp_path))
    assert "\n" not in str(caught.value)


def test_no_root_is_refused() -> None:
    with pytest.raises(UserError, match="folder needs its folder: name it with --data-root FOLDER"):
        open_dataset(DataSettings(dataset="folder"))


def test_a_class_may_lack_test_images(tmp_path: Path) -> None:
    write(tmp_path, {name: level for name, level in FILES.items() if not name.startswith("test/ant")})
    assert open_dataset(settings(tmp_path)).read_test().labels.tolist() == [2]
    assert torch.bincount(open_dataset(settings(tmp_path)).read_train().labels).tolist() == [1, 2, 1]


def test_accents_may_be_composed_in_one_part_and_not_in_another(tmp_path: Path) -> None:
    """As after a copy from a file system that takes them apart; a run that has a class by either form knows it."""
    one, other = "caf\u00e9", "cafe\u0301"
    write(tmp_path, {f"train/{one}/a.png": 1, "train/tea/a.png": 2, f"test/{other}/b.png": 3})
    dataset = open_dataset(settings(tmp_path))
    assert dataset.read_test().labels.tolist() == [0]
    known = dataset.identity
    (tmp_path / "train" / one).rename(tmp_path / "train" / other)
    copied = open_dataset(settings(tmp_path))
    assert copied.classes == [one, "tea"]
    assert known.difference(copied.identity) is None
    stored = DataIdentity(**copied.identity.model_dump() | {"classes": [other, "tea"]})
    assert stored.difference(copied.identity) is None
    chosen = open_dataset(settings(tmp_path).model_copy(update={"classes": (other, "tea")}))
    assert chosen.classes == [one, "tea"]
    write(tmp_path, {f"train/{one}/c.png": 4})
    with pytest.raises(UserError, match=r"^two folders in .*/train are both shown as 'caf\u00e9': rename one of them$"):
        open_dataset(settings(tmp_path))


def test_names_that_are_no_utf8_are_shown_escaped(tmp_path: Path) -> None:
    """Of a class and of a file, on systems whose names are bytes."""
    for part in (b"train", b"test"):
        for name in (b"caf\xe9", b"th\xe9"):
            folder = os.fsencode(tmp_path) + b"/" + part + b"/" + name
            Path(os.fsdecode(folder)).mkdir(parents=True)
            Image.new("RGB", (32, 32), "red").save(os.fsdecode(folder + b"/\xff.png"))
    dataset = open_dataset(settings(tmp_path))
    assert dataset.classes == [r"caf\udce9", r"th\udce9"]
    assert dataset.read_train().all_images().shape == (2, 3, 32, 32)
    dataset.refuse_unusable_test()


@pytest.mark.parametrize("fault", ["cut", "text", "pipe"])
def test_a_broken_test_image_is_refused_before_training(tmp_path: Path, fault: str) -> None:
    """The only thing that is said of the test images before they are tested on."""
    write(tmp_path, FILES)
    dataset = open_dataset(settings(tmp_path))
    dataset.refuse_unusable_test()
    bad = tmp_path / "test/ant/f.png"
    content = bad.read_bytes()
    bad.unlink()
    if fault == "pipe":
        os.mkfifo(bad)  # which a reader would wait for
    else:
        bad.write_bytes(content[: len(content) // 2] if fault == "cut" else b"text")
    with pytest.raises(UserError, match=rf"the image {bad} .*: replace it or delete it"):
        dataset.refuse_unusable_test()
    with sealed_test_images(), pytest.raises(ImagesSealed):
        dataset.refuse_unusable_test()
