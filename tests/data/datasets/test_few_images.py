"""Fewer training images of each class, and everything else as it was."""

import pytest
import torch

from tfkd_fast.data import DataSettings, ImagesSealed, open_dataset, sealed_test_images
from tfkd_fast.errors import UserError


def test_the_first_images_of_each_class_stay() -> None:
    whole, few = open_dataset(DataSettings()), open_dataset(DataSettings(per_class=7))
    images, labels = whole.read_train().all_images(), whole.read_train().labels
    seen = [0] * 10
    kept = []
    for place, label in enumerate(labels.tolist()):
        if seen[label] < 7:
            kept.append(place)
        seen[label] += 1
    assert torch.equal(few.read_train().all_images(), images[kept])
    assert torch.equal(few.read_train().labels, labels[kept])
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
