"""Real CIFAR-10 images, as one .npz file and as a folder of files."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tfkd_fast.data import DataSettings, make_loader, open_dataset, split_holdout
from tfkd_fast.data.datasets.torchvision_files import STATISTICS


def test_an_archive_of_real_images_is_read_split_and_loaded(real_cifar10: Path) -> None:
    settings = DataSettings(dataset="npz", root=str(real_cifar10))
    dataset = open_dataset(settings)
    assert dataset.classes[:3] == ["airplane", "automobile", "bird"]
    fit, holdout = split_holdout(dataset.read_train(), settings.holdout)
    assert torch.bincount(fit.labels).tolist() == [180] * 10
    assert torch.bincount(holdout.labels).tolist() == [20] * 10
    # two thousand images: their statistics are within a few hundredths of those of all fifty thousand
    np.testing.assert_allclose(dataset.mean, STATISTICS["cifar10"].mean, atol=0.03)
    np.testing.assert_allclose(dataset.std, STATISTICS["cifar10"].std, atol=0.02)
    loader = make_loader(dataset.read_train(), dataset, settings, torch.device("cpu"), torch.float32, seed=0)
    assert loader.name == "resident"
    images = torch.cat([batch.images for batch in loader.in_order()])
    # every pixel of the training images, normalised by their own statistics; the tolerance is float32's over 1e6 values
    torch.testing.assert_close(images.double().mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.double().std((0, 2, 3)), torch.ones(3).double(), atol=1e-5, rtol=0)


def test_a_folder_of_the_same_images_is_the_same_data_set(real_cifar10: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(real_cifar10))
    for part in ("train", "test"):
        pairs = zip(arrays[f"{part}_images"], arrays[f"{part}_labels"], strict=True)
        for i, (image, label) in enumerate(pairs):
            folder = tmp_path / part / str(arrays["classes"][label])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:05d}.png")
    from_files = open_dataset(DataSettings(dataset="folder", root=str(tmp_path)))
    from_archive = open_dataset(DataSettings(dataset="npz", root=str(real_cifar10)))
    assert from_files.classes == sorted(from_archive.classes)
    assert from_files.mean == from_archive.mean
    by_class = torch.argsort(
        from_archive.read_train().labels, stable=True
    )  # the classes' names are in alphabetical order
    assert torch.equal(from_files.read_train().all_images(), from_archive.read_train().all_images()[by_class])
