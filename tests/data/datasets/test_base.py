"""What all data sets share: names, statistics, and that test images rest until they are asked for."""

import numpy as np
import pytest
import torch

from tfkd_fast.data import DataSettings, open_dataset
from tfkd_fast.data.datasets.base import Dataset, channel_statistics
from tfkd_fast.data.images import ArrayImages, ImageSet
from tfkd_fast.errors import UserError


@pytest.mark.parametrize(
    ("name", "hint"), [("cifar11", "cifar10"), ("digit", "digits"), ("x", "choose from aircraft, ")]
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=rf"unknown data set '{name}': .*{hint}"):
        open_dataset(DataSettings(dataset=name))


def test_statistics_are_those_of_all_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 3, 4, 4), dtype=np.uint8)
    pixels[:, 1] //= 3
    images = ArrayImages(torch.from_numpy(pixels), torch.zeros(5000, dtype=torch.int64))
    mean, std = channel_statistics(images)
    flat = pixels.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    # integer counts and float64 sums: rounding of a few units in the last place
    np.testing.assert_allclose(mean, flat.mean(1), rtol=1e-12)
    np.testing.assert_allclose(std, flat.std(1), rtol=1e-12)


def test_a_constant_channel_can_be_divided_by() -> None:
    images = ArrayImages(torch.full((3, 1, 4, 4), 7, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    assert channel_statistics(images) == ((7 / 255,), (1 / 255,))


def test_training_images_are_read_once_and_test_images_only_when_asked_for() -> None:
    reads: list[str] = []

    def reader(part: str) -> ImageSet:
        reads.append(part)
        return ArrayImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))

    dataset = Dataset(
        "x", ["a", "b"], (1, 4, 4), flip=True, read_train=lambda: reader("train"), read_test=lambda: reader("test")
    )
    assert reads == []
    dataset.read_train()
    dataset.read_train()
    assert dataset.mean == (0.0,)
    assert reads == ["train"]
    dataset.read_test()
    assert reads == ["train", "test"]


def test_flip_can_be_chosen_against_the_custom_of_the_data_set() -> None:
    assert not open_dataset(DataSettings()).flip
    assert open_dataset(DataSettings(flip=True)).flip
