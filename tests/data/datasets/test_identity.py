"""Whether two data sets are the same one is told by their content, wherever it lies."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.data_files import SOURCES, Arrays, Written, arrays
from tfkd_fast.data import DataIdentity, Dataset, DataSettings, ImagesSealed, open_dataset, sealed_test_images

FILES = ("train/ant/a.png", "train/ant/b.bmp", "train/bee/c.png", "train/bee/d.png", "test/ant/e.png", "test/bee/f.bmp")


def npz(path: Path, content: Arrays, **keys: Any) -> Dataset:
    np.savez(path, **content)
    return open_dataset(DataSettings(dataset="npz", root=str(path), **keys))


def folder(root: Path, **keys: Any) -> Dataset:
    return open_dataset(DataSettings(dataset="folder", root=str(root), **keys))


def write_folder(root: Path) -> Path:
    for level, name in enumerate(FILES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (level, 0, 0)).save(root / name)
    return root


def difference(one: Dataset, other: Dataset) -> str:
    assert one.identity.is_comparable(other.identity)
    return one.identity.difference(other.identity) or "none"


def changed(key: str, place: Any, value: Any) -> Arrays:
    content = arrays()
    content[key][place] = value
    return content


TRAINING, TEST = (f"its {part} images, their labels or their order are others" for part in ("training", "test"))
ONE, SWAPPED = arrays(), [1, 0, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed("train_images", (5, 31, 31, 2), 0), TRAINING),
        (changed("train_images", slice(None), ONE["train_images"][SWAPPED]), TRAINING),
        (changed("train_labels", slice(None), ONE["train_labels"][SWAPPED]), TRAINING),
        (changed("test_images", (0, 0, 0, 0), 0), TEST),
        (changed("test_labels", 0, 1), TEST),
        (changed("classes", slice(None), ["cow", "bee", "ant"]), "its class number 0 is 'cow', not 'ant' (the same"),
        (changed("classes", 1, "elk"), "its class number 1 is 'elk', not 'bee'"),
        (ONE | {"classes": np.array(["ant", "bee", "cow", "dog"]), "train_labels": SWAPPED}, "has 4 classes, not 3"),
        (arrays(64), "its images have the shape (3, 64, 64), not (3, 32, 32)"),
    ],
    ids=["pixel", "order", "labels", "test pixel", "test label", "order of classes", "class", "classes", "shape"],
)
def test_other_content_is_named(tmp_path: Path, content: Arrays, said: str) -> None:
    content = content | {"train_labels": np.array(content["train_labels"]) % len(content["classes"])}
    found = difference(npz(tmp_path / "one.npz", ONE), npz(tmp_path / "other.npz", content))
    assert said in found


def test_the_same_arrays_in_another_file_are_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    one, other = npz(tmp_path / "one.npz", ONE), tmp_path / "moved" / "other.npz"
    np.savez_compressed(other, **ONE)
    assert difference(one, open_dataset(DataSettings(dataset="npz", root=str(other)))) == "none"


@pytest.mark.parametrize("keys", [{"per_class": 1}, {"classes": ("ant", "cow")}], ids=["few images", "some classes"])
def test_a_part_of_a_data_set_has_the_test_images_of_the_whole(tmp_path: Path, keys: Any) -> None:
    one = npz(tmp_path / "one.npz", ONE, **keys)
    assert difference(one, npz(tmp_path / "same.npz", ONE, **keys)) == "none"
    assert difference(one, npz(tmp_path / "other.npz", changed("test_images", (0, 0, 0, 0), 0), **keys)) == TEST
    assert "training" in difference(one, npz(tmp_path / "another.npz", changed("train_images", 0, 7), **keys))


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "one")
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    (moved / "train/ant/a.png").rename(moved / "train/ant/aa.png")
    os.utime(moved / "train/ant/b.bmp", (0, 0))
    one = folder(root)
    assert difference(one, folder(moved)) == "none"
    for name, said in (("train/ant/b.bmp", TRAINING), ("test/bee/f.bmp", TEST)):
        content = (moved / name).read_bytes()
        (moved / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])  # of the same size
        assert difference(one, folder(moved)) == said
        (moved / name).write_bytes(content)


def test_names_that_are_not_utf_8_are_no_hindrance(tmp_path: Path) -> None:
    root, odd = write_folder(tmp_path / "one"), write_folder(tmp_path / "odd")
    (odd / "train/ant/a.png").rename(odd / "train/ant" / os.fsdecode(b"a\xff.png"))
    assert difference(folder(root), folder(odd)) == "none"


def test_a_fingerprint_of_names_and_sizes_cannot_be_compared(tmp_path: Path) -> None:
    """As earlier versions made it of files; those of arrays were made as today, without test images."""
    now = folder(write_folder(tmp_path)).identity
    before = now.model_copy(update={"training_data": "0" * 64, "test_data": ""})
    assert before.difference(now) is None
    assert not before.is_comparable(now)
    arrays_now = npz(tmp_path / "one.npz", ONE).identity
    arrays_before = arrays_now.model_copy(update={"training_data": "0" * 64, "test_data": ""})
    assert arrays_before.difference(arrays_now) == TRAINING


def test_test_images_are_hashed_without_being_looked_at(tmp_path: Path) -> None:
    """While they are sealed, and also where nobody could look at them."""
    root = write_folder(tmp_path / "folder")
    (root / "test/bee/f.bmp").write_bytes(b"no image")
    with sealed_test_images():
        for dataset in (
            folder(root),
            npz(tmp_path / "one.npz", changed("test_labels", 0, 99)),
            open_dataset(DataSettings()),
        ):
            assert dataset.identity.test_data
            with pytest.raises(ImagesSealed):
                dataset.read_test()


@pytest.mark.parametrize("name", [*SOURCES, "svhn"])
def test_downloaded_files_are_known_by_their_checksums(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Written(name, tmp_path / "one", monkeypatch)
    one = written.open().identity
    shutil.move(written.root, tmp_path / "moved")
    written.root = tmp_path / "moved"
    assert written.open().identity == one
    assert re.fullmatch("[0-9a-f]{64}", one.test_data)
    assert Written(name, tmp_path / "again", monkeypatch).open().identity.test_data == one.test_data


@pytest.mark.parametrize(
    "entry",
    [
        {"classes": []},
        {"classes": ["a", "a"]},
        {"mean": [float("nan")] * 3},
        {"mean": [0.5]},
        {"std": [0.2, 0.0, 0.2]},
        {"std": [0.2, -1.0, 0.2]},
        {"std": [0.2, float("inf"), 0.2]},
        {"image_shape": [3, 32]},
        {"image_shape": [3, 32, 10**9]},
        {"training_data": 5},
    ],
    ids=str,
)
def test_what_no_data_set_can_be_is_refused(entry: dict[str, Any]) -> None:
    good = {"classes": ["a", "b"], "image_shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3}
    DataIdentity.model_validate(good)
    with pytest.raises(ValueError, match=next(iter(entry))):
        DataIdentity.model_validate(good | entry)
