"""The bundled digits against scikit-learn's arrays and Pillow-free bilinear interpolation."""

import pytest
import torch
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_digits

from tfkd_fast.data import DataSettings, open_dataset
from tfkd_fast.errors import UserError


def test_training_and_test_parts_are_all_digits_class_balanced() -> None:
    dataset = open_dataset(DataSettings())
    assert dataset.classes == [str(digit) for digit in range(10)]
    assert dataset.image_shape == (1, 32, 32)
    assert not dataset.flip
    train, test = dataset.read_train(), dataset.read_test()
    assert len(train) + len(test) == 1797
    total = torch.bincount(torch.from_numpy(load_digits().target))
    assert torch.bincount(test.labels).tolist() == [round(0.2 * count) for count in total.tolist()]
    # no image is on both sides
    both = torch.cat([train.all_images(), test.all_images()]).flatten(1)
    assert len(both.unique(dim=0)) == len(torch.from_numpy(load_digits().data).unique(dim=0))


def test_pixels_are_the_bilinear_enlargement() -> None:
    dataset = open_dataset(DataSettings())
    train = dataset.read_train()
    position = (torch.arange(32.0) + 0.5) / 4 - 0.5  # centres of the small pixels in a large image
    grid = torch.stack(torch.meshgrid(position, position, indexing="ij")).numpy()
    bundled = load_digits()
    enlarged = torch.stack(
        [
            torch.from_numpy(map_coordinates(image * 255 / 16, grid, order=1, mode="nearest"))
            for image in bundled.images[:40]
        ]
    )
    found = 0
    for image, label in zip(enlarged, bundled.target[:40], strict=True):
        distance = (train.all_images()[:, 0] - image).abs().amax((1, 2))
        if distance.min() <= 0.5:  # rounding to a grey level
            found += 1
            assert train.labels[distance.argmin()] == label
    assert found >= 20  # about 32 of 40 are training images


def test_statistics_are_of_the_training_part_alone() -> None:
    dataset = open_dataset(DataSettings())
    pixels = dataset.read_train().all_images().numpy() / 255
    assert dataset.mean == pytest.approx([pixels.mean()], rel=1e-12)
    assert dataset.std == pytest.approx([pixels.std()], rel=1e-12)


def test_a_folder_that_would_not_be_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"digits is bundled and reads nothing from '.*/data'"):
        open_dataset(DataSettings(root="data"))
