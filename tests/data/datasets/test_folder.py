"""Folders of image files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tfkd_fast.data import DataSettings, open_dataset
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
    with pytest.raises(UserError, match=r"cannot read the image .*test/cow/e.png"):
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
        UserError, match=r"cannot read the image .*train/bee/b.png \(no image format that Pillow knows\)"
    ):
        open_dataset(settings(tmp_path)).mean  # noqa: B018  # the first that looks at pixels


def test_no_root_is_refused() -> None:
    with pytest.raises(UserError, match="folder needs its folder: name it with --data-root FOLDER"):
        open_dataset(DataSettings(dataset="folder"))


def test_a_class_may_lack_test_images(tmp_path: Path) -> None:
    write(tmp_path, {name: level for name, level in FILES.items() if not name.startswith("test/ant")})
    assert open_dataset(settings(tmp_path)).read_test().labels.tolist() == [2]
    assert torch.bincount(open_dataset(settings(tmp_path)).read_train().labels).tolist() == [1, 2, 1]
