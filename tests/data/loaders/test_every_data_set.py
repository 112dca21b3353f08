"""Each kind of data set through each loader: the pixels of its files, in the same order and with the same crops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.loaders.batches import assert_same, collect, loader_of, normalised
from tests.support.data_files import Written, arrays, write_shards
from tfkd_fast.data import Dataset, DataSettings, missing_loaders, open_dataset


@pytest.fixture(params=["resident", "dali", "torchvision"])
def loader(request: pytest.FixtureRequest) -> str:
    if reason := missing_loaders()[request.param]:
        pytest.skip(f"the loader {request.param} {reason}")
    return request.param


@pytest.fixture(params=["cifar10", "cifar100", "svhn", "npz", "npz, grey", "folder", "folder, 64", "webdataset"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    name, _, kind = request.param.partition(", ")
    if name == "folder":
        random = np.random.default_rng(0)
        for i in range(12):
            file = tmp_path / ("train" if i < 8 else "test") / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            size = int(kind or 32)
            Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file)
        return open_dataset(DataSettings(dataset="folder", root=str(tmp_path), image_size=size))
    if name == "webdataset":
        return open_dataset(DataSettings(dataset="webdataset", root=str(write_shards(tmp_path, 40))))
    if name == "npz":
        np.savez(tmp_path / "data.npz", **arrays(channels=1 if kind == "grey" else 3))
        return open_dataset(DataSettings(dataset="npz", root=str(tmp_path / "data.npz")))
    return Written(name, tmp_path / "data", monkeypatch).open()


def check(dataset: Dataset, loader: str, batch_size: int) -> None:
    made = loader_of(dataset, loader, batch_size=batch_size)
    images = dataset.read_train()
    batch = collect(made.in_order())
    expected = torch.stack([normalised(image.numpy(), dataset) for image in images.all_images()])
    torch.testing.assert_close(batch.images, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(batch.labels, images.labels)
    assert_same(made.epoch(2, 1), loader_of(dataset, "resident", batch_size=batch_size).epoch(2, 1))


def test_pixels_and_labels_are_those_of_the_files(dataset: Dataset, loader: str) -> None:
    check(dataset, loader, batch_size=5)


def test_real_images(real_cifar: Path, loader: str) -> None:
    check(open_dataset(DataSettings(dataset="npz", root=str(real_cifar))), loader, batch_size=128)


def test_real_images_in_files(real_cifar: Path, loader: str, tmp_path: Path) -> None:
    content = np.load(real_cifar)
    for part in ("train", "test"):
        for i, label in enumerate(content[f"{part}_labels"][:300]):
            folder = tmp_path / part / f"{label:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content[f"{part}_images"][i]).save(folder / f"{i}.png")
    check(open_dataset(DataSettings(dataset="folder", root=str(tmp_path))), loader, batch_size=128)
