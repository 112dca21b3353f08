"""Data sets in the layouts that they are distributed in: what is read is what torchvision gives, image by image."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from tests.support.official_layouts import LAYOUTS, Writer, imagenet, tiny_imagenet
from tfkd_fast.data import Dataset, DataSettings, ImageSet, open_dataset, sealed_test_images
from tfkd_fast.data import settings as data_settings
from tfkd_fast.data.datasets import torchvision_sets
from tfkd_fast.data.settings import holds_files
from tfkd_fast.errors import UserError

TABLE: Mapping[str, Any] = torchvision_sets.FILES | torchvision_sets.ARRAYS


def opened(name: str, root: Path) -> Dataset:
    size = {"image_size": 28} if holds_files(name) else {}
    return open_dataset(DataSettings(dataset=name, root=str(root), **size))


def shown(images: ImageSet) -> list[tuple[int, bytes]]:
    """Label and whole image of each."""
    return sorted((int(label), np.asarray(images.whole(i)).tobytes()) for i, label in enumerate(images.labels))


def shown_by_torchvision(source: str, root: Path, *parts: Mapping[str, Any]) -> list[tuple[int, bytes]]:
    pairs = [pair for part in parts for pair in getattr(datasets, source)(str(root), **part)]
    return sorted((int(label), np.asarray(image).tobytes()) for image, label in pairs)


def test_every_data_set_of_torchvision_is_in_the_tables_and_written_here() -> None:
    assert sorted(torchvision_sets.FILES) == sorted(data_settings.FILES)
    assert {*torchvision_sets.ARRAYS, "cifar10", "cifar100", "svhn"} == set(data_settings.ARRAYS)
    assert sorted(LAYOUTS) == sorted(TABLE)


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_and_labels_are_those_of_torchvision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS[name](Writer(tmp_path), monkeypatch)
    source, dataset = TABLE[name], opened(name, tmp_path)
    train, test = dataset.read_train(), dataset.read_test()
    assert dataset.flip == (name not in ("gtsrb", "mnist"))
    assert len(dataset.classes) == int(train.labels.max()) + 1
    if isinstance(source, torchvision_sets.Arrays):
        assert shown(train) == shown_by_torchvision(source.source, tmp_path, source.train)
        assert shown(test) == shown_by_torchvision(source.source, tmp_path, source.test)
    elif source.test is None:
        assert shown_by_torchvision(source.source, tmp_path, *source.train) == sorted(shown(train) + shown(test))
        assert dataset.parts.startswith(f"torchvision names no test images of {name}, so 20 % of the images of each")
    else:
        assert shown(train) == shown_by_torchvision(source.source, tmp_path, *source.train)
        assert shown(test) == shown_by_torchvision(source.source, tmp_path, source.test)
    with sealed_test_images():
        assert dataset.identity.test_data == test.fingerprint() != train.fingerprint()


@pytest.mark.parametrize("name", ["food101", "stl10", "caltech256"])
def test_what_is_not_there_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=rf"^{name} is not in .*nowhere: fetch it with --download or name its place"):
        opened(name, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(UserError, match=rf"^{name} is not whole in .*: fetch it with --download or name its place"):
        opened(name, tmp_path)


def test_a_damaged_list_of_files_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["food101"](Writer(tmp_path), monkeypatch)
    (tmp_path / "food-101/meta/train.json").write_text("{")
    with pytest.raises(UserError, match=r"^a file of food101 in .* (is|cannot|does)[^\n]*: fetch it with --download"):
        opened("food101", tmp_path)


def test_a_missing_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["food101"](Writer(tmp_path), monkeypatch)
    (tmp_path / "food-101/images/waffles/101.jpg").unlink()
    with pytest.raises(UserError, match=r"^the image .*waffles/101\.jpg does not exist: replace it or delete it$"):
        _ = opened("food101", tmp_path).identity


def colours(images: ImageSet, classes: list[str]) -> list[tuple[str, tuple[int, ...]]]:
    return sorted((classes[label], images.whole(i).getpixel((0, 0))) for i, label in enumerate(images.labels.tolist()))


def written(root: Path, *patterns: str) -> list[tuple[str, tuple[int, ...]]]:
    """Class and colour of files whose path names their class."""
    files = [file for pattern in patterns for file in root.glob(pattern)]
    return sorted((re.findall(r"n\d{8}", str(file))[0], Image.open(file).getpixel((0, 0))) for file in files)


@pytest.mark.parametrize("inner", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_is_read_as_it_is_distributed(tmp_path: Path, inner: str) -> None:
    tiny_imagenet(Writer(tmp_path))
    dataset, root = opened("tiny-imagenet", tmp_path / inner), tmp_path / "tiny-imagenet-200"
    assert dataset.classes == ["n01443537", "n01629819"]
    assert colours(dataset.read_train(), dataset.classes) == written(root, "train/*/images/*.JPEG")
    expected = [
        (f"n0{(1629819, 1443537)[i % 2]}", Image.open(root / f"val/images/val_{i}.JPEG").getpixel((0, 0)))
        for i in range(4)
    ]
    assert colours(dataset.read_test(), dataset.classes) == sorted(expected)
    assert dataset.mean == (0.4802, 0.4481, 0.3975)
    assert "val/ are the test set" in dataset.parts


@pytest.mark.parametrize("kind", ["folders", "kaggle", "devkit"])
def test_imagenet_is_read_as_it_is_distributed(tmp_path: Path, kind: str) -> None:
    imagenet(Writer(tmp_path), kind)
    dataset = opened("imagenet", tmp_path)
    assert dataset.classes == ["n01440764", "n15075141"]
    assert colours(dataset.read_train(), dataset.classes) == written(tmp_path, "**/train/*/*.JPEG")
    files = sorted(tmp_path.glob("**/val/**/*.JPEG"), key=lambda file: file.name)
    expected = [(dataset.classes[(i + 1) % 2], Image.open(file).getpixel((0, 0))) for i, file in enumerate(files)]
    assert colours(dataset.read_test(), dataset.classes) == sorted(expected)
    assert dataset.mean == (0.485, 0.456, 0.406)


def test_what_imagenet_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data set imagenet needs its folder: name it with --data-root FOLDER$"):
        open_dataset(DataSettings(dataset="imagenet"))
    with pytest.raises(UserError, match=r"^there is no folder train/ in .*, where imagenet should be: fetch it from"):
        opened("imagenet", tmp_path)
    with pytest.raises(UserError, match=r"^tiny-imagenet cannot be downloaded here: fetch it from"):
        open_dataset(DataSettings(dataset="tiny-imagenet", root=str(tmp_path)), download=True)
    imagenet(Writer(tmp_path), "devkit")
    (tmp_path / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").write_text("3\n9\n")
    with pytest.raises(UserError, match=r"^the labels .*ground_truth\.txt .*: unpack the data set again$"):
        opened("imagenet", tmp_path)
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n")
    with pytest.raises(UserError, match=r"^/.*/val names no image: add some$"):
        opened("imagenet", tmp_path)
    (tmp_path / "LOC_val_solution.csv").unlink()
    (tmp_path / "ILSVRC2012_devkit_t12").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"val holds images without class folders, and .* neither LOC_val_solution"):
        opened("imagenet", tmp_path)


def test_arrays_are_the_images_of_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["stl10"](Writer(tmp_path), monkeypatch)
    raw = np.fromfile(tmp_path / "stl10_binary" / "train_X.bin", np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)
    images = opened("stl10", tmp_path).read_train()
    assert torch.equal(images.all_images(), torch.from_numpy(raw.copy()))
