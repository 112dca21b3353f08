"""The strong augmentation against the published one, image by image, and the companions that have it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.loaders.batches import data_settings
from tfkd_fast.data import Dataset, DataSettings, DataStream, Loader, make_loader, missing_loaders, open_dataset
from tfkd_fast.data.companions import COMPANION_STREAM
from tfkd_fast.data.strong import augment_strongly
from tfkd_fast.randomness import Purpose, random_words
from tfkd_fast.training.feed import make_feed

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
SEED, EPOCH, STREAM = 5, 3, 2


def uniform(word: Tensor) -> float:
    return (int(word) + 0.5) / 2**32


def published(image: np.ndarray, index: int, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """One standardised image (C,H,W) under the policy of Zhao et al. with its parameters drawn from our words.

    Their images range from -1 to 1 and have 0 where something is moved in or cut out; ours have the mean colour there.
    """
    names = {"seed": SEED, "epoch": EPOCH, "stream": STREAM}
    colour, place = (random_words(torch.tensor(2 * index + i), Purpose.STRONG, **names) for i in (0, 1))
    x = 2.0 * (image * std[:, None, None] + mean[:, None, None]) - 1.0
    x = x + (uniform(colour[0]) - 0.5)
    grey = x.mean(axis=0, keepdims=True)
    x = (x - grey) * (uniform(colour[1]) * 2.0) + grey
    average = x.mean()
    x = (x - average) * (uniform(colour[2]) + 0.5) + average
    x = ((x + 1.0) / 2.0 - mean[:, None, None]) / std[:, None, None]

    _, height, width = image.shape
    sides = (height, width)
    down, right = (
        int(uniform(word) * (2 * side // 8 + 1)) - side // 8 for word, side in zip(place[:2], sides, strict=True)
    )
    row, column = (int(uniform(word) * (side + 1)) - side // 4 for word, side in zip(place[2:], sides, strict=True))
    result = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            is_cut = row <= i < row + height // 2 and column <= j < column + width // 2
            # What was at (i + down, j + right) is shown at (i, j), as in the published code.
            if 0 <= i + down < height and 0 <= j + right < width and not is_cut:
                result[:, i, j] = x[:, i + down, j + right]
    return result


def a_batch(n: int = 1, count: int = 6, size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, count, size, size, 3, generator=generator).movedim(-1, 2)
    return images, torch.randperm(100, generator=generator)[: n * count].view(n, count)


def draw(seed: int = SEED, epoch: int = EPOCH, stream: int = STREAM) -> Tensor:
    return torch.tensor([[seed, epoch, stream]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_published_policy_image_by_image(dtype: torch.dtype) -> None:
    images, indices = a_batch()
    images = images.to(dtype)
    found = augment_strongly(images, indices, draw(), mean=MEAN, std=STD)
    assert found.dtype == dtype
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    mean, std = MEAN.double().numpy(), STD.double().numpy()
    for number, index in enumerate(indices[0].tolist()):
        expected = torch.from_numpy(published(images[0, number].double().numpy(), index, mean, std))
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-3}
        torch.testing.assert_close(found[0, number].double(), expected, **tolerance)


def test_a_view_is_a_function_of_seed_epoch_stream_and_image_wherever_it_stands() -> None:
    images, indices = a_batch(2)
    draws = torch.cat([draw(stream=0), draw(stream=1)])
    whole = augment_strongly(images, indices, draws, mean=MEAN, std=STD)
    alone = augment_strongly(images[1:, 2:3], indices[1:, 2:3], draws[1:], mean=MEAN, std=STD)
    assert torch.equal(whole[1, 2], alone[0, 0])
    for other in (draw(seed=6), draw(epoch=4), draw(stream=3)):
        changed = augment_strongly(images[:1], indices[:1], other, mean=MEAN, std=STD)
        same = augment_strongly(images[:1], indices[:1], draw(), mean=MEAN, std=STD)
        assert all(not torch.equal(a, b) for a, b in zip(changed[0], same[0], strict=True))


def test_moves_and_cuts_cover_their_ranges_evenly() -> None:
    """Of 17 x 17 moves and 33 x 33 squares; the share of what is kept is known from the ranges alone."""
    count, size = 20_000, 32
    ones = torch.ones(1, count, 1, size, size)
    grey = torch.tensor([0.5])
    kept = augment_strongly(ones, torch.arange(count).unsqueeze(0), draw(), mean=grey, std=grey) != 0
    moves, starts = range(-4, 5), range(-8, 25)

    def shares(offsets: range, length: int) -> np.ndarray:
        """(size,): how often each place is between an offset and `length` places later."""
        places = np.arange(size)
        return np.mean([(places >= offset) & (places < offset + length) for offset in offsets], axis=0)

    inside = shares(moves, size)
    cut = shares(starts, size // 2)
    expected = torch.from_numpy(np.outer(inside, inside) * (1.0 - np.outer(cut, cut)))
    # The deviation of a share of 20,000 is 0.0035 at most; of 1,024 none is 5 deviations away.
    assert (kept[0, :, 0].double().mean(0) - expected).abs().max() < 0.0177


def shown_beside(name: str, kind: Any, epoch: int, streams: list[int]) -> list[tuple[Tensor, ...]]:
    if reason := missing_loaders()[name]:
        pytest.skip(f"the loader {name} {reason}")
    loader = a_loader(name)
    feed = make_feed(loader, kind, None, len(streams), CPU)
    feed.start(epoch, [DataStream(stream, stream) for stream in streams])
    found = []
    for step, size in enumerate(loader.batch_sizes()):
        feed.advance()
        shown = feed.read(torch.tensor([step]), size)
        found.append((*shown.batch, *shown.companions))
    feed.finish()
    return found


def digits() -> Dataset:
    return open_dataset(DataSettings())


def a_loader(name: str) -> Loader:
    settings = data_settings(name, batch_size=16, workers=0)
    images = digits().read_train().subset(torch.arange(40))
    return make_loader(images, digits(), settings, CPU, torch.float32, seed=3)


@pytest.mark.parametrize("kind", ["weak", "strong"])
def test_a_companion_is_another_view_of_the_same_image(kind: Any) -> None:
    loader = a_loader("resident")
    same = 0
    for images, labels, indices, companions, their_labels, their_indices in shown_beside("resident", kind, 1, [0]):
        assert torch.equal(indices, their_indices)
        assert torch.equal(labels, their_labels)
        views = torch.cat([b.images for b in loader.visit(indices[0], 1, COMPANION_STREAM)]).unsqueeze(0)
        if kind == "strong":
            assert all(not torch.equal(a, b) for a, b in zip(companions[0], views[0], strict=True))
            draws = torch.tensor([[3, 1, COMPANION_STREAM]])
            mean, std = (torch.tensor(values) for values in (digits().mean, digits().std))
            views = augment_strongly(views, indices, draws, mean=mean, std=std)
        assert torch.equal(companions, views)
        same += sum(torch.equal(a, b) for a, b in zip(images[0], companions[0], strict=True))
    assert same < 10  # one crop of 81 is the same


@pytest.mark.parametrize("name", ["torchvision", "dali"])
@pytest.mark.parametrize("kind", ["weak", "strong"])
def test_every_loader_shows_the_same_views(kind: Any, name: str) -> None:
    for streams in ([0], [0, 7]):
        expected = shown_beside("resident", kind, 2, streams)
        for found, wanted in zip(shown_beside(name, kind, 2, streams), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
