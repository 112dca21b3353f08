"""Fewer training images of each class, and everything else as it was."""

import pytest
import torch

from tfkd_fast.data import DataSettings, ImagesSealed, open_dataset, sealed_test_images
from tfkd_fast.errors import UserError


def places(few: torch.Tensor, whole: torch.Tensor) -> list[int]:
    """Where the images of one tensor are in the other, first match."""
    return [int((whole == image).flatten(1).all(1).nonzero()[0]) for image in few]


def test_so_many_images_of_each_class_stay() -> None:
    whole, few = open_dataset(DataSettings()), open_dataset(DataSettings(per_class=7))
    images, labels = whole.read_train().all_images(), whole.read_train().labels
    kept = places(few.read_train().all_images(), images)
    assert kept == sorted(kept)
    assert torch.equal(few.read_train().labels, labels[kept])
    assert few.read_train().labels.bincount().tolist() == [7] * 10
    first = [place for label in range(10) for place in (labels == label).nonzero().squeeze(1)[:7].tolist()]
    assert len(set(kept) & set(first)) < 20  # not the first ones: about 7 of 128 a class
    more = places(open_dataset(DataSettings(per_class=20)).read_train().all_images(), images)
    assert set(kept) <= set(more)
    assert torch.equal(few.read_test().labels, whole.read_test().labels)
    assert (few.name, few.classes, few.mean, few.std) == (whole.name, whole.classes, whole.mean, whole.std)
    with sealed_test_images(), pytest.raises(ImagesSealed):
        few.read_test()


def test_some_classes_of_few_images() -> None:
    few = open_dataset(DataSettings(per_class=7, classes=("3", "5")))
    assert few.read_train().labels.bincount().tolist() == [7, 7]


def test_more_than_there_are() -> None:
    with pytest.raises(UserError, match=r"data.per_class is 5000, but class '0' has \d+ training images: lower it"):
        open_dataset(DataSettings(per_class=5000)).read_train()
