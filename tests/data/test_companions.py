"""Which images stand beside those of a batch."""

import pytest
import torch

from tests.data.loaders.batches import data_settings
from tfkd_fast.data import make_loader, open_dataset
from tfkd_fast.data.companions import companion_order

CPU = torch.device("cpu")
NAMES = {"seed": 3, "epoch": 1, "stream": 0}


def test_a_companion_is_another_image_of_the_class() -> None:
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 0, 1] * 5 + [3])  # class 3 has one image
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    beside = companion_order("same-class", order, labels, 4, **NAMES)
    torch.testing.assert_close(labels[beside], labels[order])
    alone = labels[order] == 3
    assert (beside[~alone] != order[~alone]).all()
    assert (beside[alone] == order[alone]).all()


def test_every_other_image_of_the_class_is_equally_likely() -> None:
    labels = torch.tensor([0, 1] * 4)
    order, counts, epochs = torch.arange(8), torch.zeros(8, 8), 3000
    for epoch in range(epochs):
        beside = companion_order("same-class", order, labels, 4, seed=0, epoch=epoch, stream=0)
        counts[order, beside] += 1
    others = (labels[:, None] == labels) & ~torch.eye(8, dtype=torch.bool)
    # A count is binomial with mean 1000 and deviation sqrt(3000/3*2/3) = 26; of 24 counts none is 5 deviations away.
    assert (counts[others] - epochs / 3).abs().max() < 130
    assert counts[~others].sum() == 0


def test_only_visited_images_are_companions() -> None:
    labels = torch.arange(40) % 4
    order = torch.arange(0, 40, 3)
    beside = companion_order("same-class", order, labels, 4, **NAMES)
    assert set(beside.tolist()) <= set(order.tolist())
    torch.testing.assert_close(labels[beside], labels[order])


def test_the_companions_of_a_step_are_the_images_of_the_step_before() -> None:
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    beside = companion_order("previous", order, torch.zeros(11, dtype=torch.int64), 4, **NAMES).split(4)
    batches = order.split(4)
    assert beside[1].tolist() == batches[0].tolist()
    assert beside[2].tolist() == batches[1][:3].tolist()  # the last batch is smaller


@pytest.mark.parametrize("loader", ["resident", "torchvision"])
def test_a_restricted_loader_shows_the_same_pixels_of_fewer_images(loader: str) -> None:
    settings = data_settings(loader, batch_size=16, workers=0)
    digits = open_dataset(settings)
    images = digits.read_train().subset(torch.arange(120))
    whole = make_loader(images, digits, settings, CPU, torch.float32, seed=2)
    wanted = images.labels < 3
    part = whole.with_labels((0, 1, 2))
    assert len(part) == len(part.batch_sizes()) == -(-int(wanted.sum()) // 16)
    shown = {
        int(index): pixels
        for batch in whole.epoch(4)
        for index, pixels in zip(batch.indices, batch.images, strict=True)
    }
    seen = []
    for batch in part.epoch(4):
        seen += batch.indices.tolist()
        assert (batch.labels < 3).all()
        for index, pixels in zip(batch.indices.tolist(), batch.images, strict=True):
            torch.testing.assert_close(pixels, shown[index], rtol=0, atol=0)
    assert sorted(seen) == wanted.nonzero().squeeze(1).tolist()
    in_order = torch.cat([batch.indices for batch in part.in_order()])
    assert in_order.tolist() == sorted(seen)


@pytest.mark.parametrize("loader", ["resident", "torchvision"])
def test_repeated_augmentation_in_new_orders(loader: str) -> None:
    settings = data_settings(loader, batch_size=16, workers=0)
    digits = open_dataset(settings)
    images = digits.read_train().subset(torch.arange(48))
    repeating = make_loader(images, digits, settings, CPU, torch.float32, seed=2).with_augmentation_period(2)

    def epoch(number: int) -> tuple[list[int], torch.Tensor]:
        indices, pixels = zip(*((b.indices, b.images) for b in repeating.epoch(number)), strict=True)
        order = torch.cat(indices)
        return order.tolist(), torch.cat(pixels)[order.argsort()]

    (first, zero), (_, one), (third, two) = epoch(0), epoch(1), epoch(2)
    assert first != third
    torch.testing.assert_close(two, zero, rtol=0, atol=0)
    assert not torch.equal(one, zero)
