"""The superclasses of CIFAR-100 against the labels that its files carry, wherever the classes are found."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfkd_fast.data import Dataset, DataSettings, open_dataset
from tfkd_fast.data.superclasses import CIFAR100, find_superclasses

CLASSES = sorted(name.replace(" ", "_") for names in CIFAR100.values() for name in names)

# Krizhevsky's files: "coarse_labels" of an image with "fine_labels" 0, 1, ...; both kinds of names are alphabetical.
COARSE_LABELS = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11),
    *(6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5),
    *(5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17),
    *(10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13),
    *(16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
]


def write(path: Path, classes: list[str]) -> Dataset:
    """An .npz data set of one image a class."""
    images = np.zeros((len(classes), 32, 32, 1), np.uint8)
    labels = np.arange(len(classes))
    arrays = {f"{part}_{what}": a for part in ("train", "test") for what, a in (("images", images), ("labels", labels))}
    np.savez(path / "data.npz", classes=np.array(classes), **arrays)
    return open_dataset(DataSettings(dataset="npz", root=str(path / "data.npz")))


def test_the_table_is_that_of_the_files() -> None:
    found = find_superclasses(CLASSES)
    assert found is not None
    assert list(found) == sorted(found)
    expected = [tuple(np.flatnonzero(np.array(COARSE_LABELS) == coarse)) for coarse in range(20)]
    assert list(found.values()) == expected


def test_the_classes_of_real_files_are_known(real_cifar: Path) -> None:
    dataset = open_dataset(DataSettings(dataset="npz", root=str(real_cifar)))
    if len(dataset.classes) == 10:
        assert dataset.superclasses is None
    else:
        assert dataset.classes == CLASSES
        assert dataset.superclasses == find_superclasses(CLASSES)


def test_labels_follow_the_order_of_an_archive(tmp_path: Path) -> None:
    classes = [name.replace("_", " ") for name in CLASSES]
    random.Random(0).shuffle(classes)
    found = write(tmp_path, classes).superclasses
    assert found is not None
    assert {name: {classes[label] for label in labels} for name, labels in found.items()} == {
        name: set(names) for name, names in CIFAR100.items()
    }


def test_folders_may_be_named_with_spaces(tmp_path: Path) -> None:
    for name in CLASSES:
        for part in ("train", "test"):
            folder = tmp_path / part / name.replace("_", " ")
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "a.png")
    assert open_dataset(DataSettings(dataset="folder", root=str(tmp_path))).superclasses == find_superclasses(CLASSES)


@pytest.mark.parametrize(
    "classes",
    [["apple", "beaver"], CLASSES[:-1], [*CLASSES, "zebra"], [*CLASSES[:-1], "zebra"], [*CLASSES, "lawn mower"]],
)
def test_other_classes_are_in_no_superclass(tmp_path: Path, classes: list[str]) -> None:
    assert write(tmp_path, classes).superclasses is None


def test_digits_are_in_no_superclass() -> None:
    assert open_dataset(DataSettings()).superclasses is None
