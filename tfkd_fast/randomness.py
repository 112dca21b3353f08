"""Counter-based random numbers: a number is a function of its key, not of the numbers that were drawn before.

The key is (seed, epoch, stream, purpose, sample). So every loader draws the same augmentation, a resumed run continues
exactly, and no generator state has to be kept. Words are integers 0 .. 2**32 - 1, held in int64 tensors.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

Words = tuple[Tensor, Tensor, Tensor, Tensor]
"""Four int64 tensors of words."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Purpose(IntEnum):
    """The purpose of a random number. The values are part of every result: never change one."""

    SPLIT = 0
    ORDER = 1
    AUGMENT = 2
    LEARNING_RATE = 3
    WEIGHTS = 4
    COMPANION = 5
    MIX = 6
    HARD_SLOT = 7
    HARD_BATCH = 8
    PROFESSOR = 9
    SUBSET = 10
    STRONG = 11
    TRANSFORMS = 12
    LAYERS = 13
    NEGATIVE = 14


def philox(counter: Words, key: tuple[int | Tensor, int | Tensor]) -> Words:
    """Compute Philox4x32-10: four random words from four counter words and two key words.

    Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 4.3.

    Args:
        counter: four int64 tensors of words that broadcast against each other and the key, on any device.
        key: two words, integers or int64 tensors.

    Returns:
        Four int64 tensors of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # 32x32 -> 64 bits. The int64 product may wrap, but its bits are right: shift, then mask the sign's copies away.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product1 >> 32 & _MASK) ^ c1 ^ k0
        c2 = (product0 >> 32 & _MASK) ^ c3 ^ k1
        c1, c3 = product1 & _MASK, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_words(
    samples: Tensor, purpose: Purpose, *, seed: int | Tensor, epoch: int | Tensor = 0, stream: int | Tensor = 0
) -> Words:
    """Return four random words for every sample.

    Seed, epoch and stream may be int64 tensors that broadcast against `samples`. Values of tensors are not checked,
    because the host would have to wait for the device; of epoch and stream the lower 32 bits count.

    Args:
        samples: int64 of any shape, values 0 .. 2**32 - 1.
        purpose: the purpose of the numbers.
        seed: 0 .. 2**64 - 1; in a tensor below 2**63.
        epoch: 0 .. 2**32 - 1.
        stream: 0 .. 2**32 - 1; separates runs that share a seed, such as the candidates of a population.

    Raises:
        ValueError: seed, epoch or stream is out of range.
    """
    for name, value, limit in (("seed", seed, 64), ("epoch", epoch, 32), ("stream", stream, 32)):
        if isinstance(value, int) and not 0 <= value < 2**limit:
            raise ValueError(f"{name} must be in 0 .. 2**{limit} - 1, got {value}")
    counter = (
        value & _MASK if isinstance(value, Tensor) else torch.full((), value, dtype=torch.int64, device=samples.device)
        for value in (epoch, purpose, stream)
    )
    return philox((samples, *counter), (seed & _MASK, seed >> 32 & _MASK))  # type: ignore[arg-type]  # four by construction


def random_keys(count: int, purpose: Purpose, *, seed: int, epoch: int, stream: int, device: torch.device) -> Tensor:
    """Return sort keys (count,) int64, uniform on 0 .. 2**63 - 1, for a random order of 0 .. count - 1."""
    samples = torch.arange(count, device=device)
    high, low, _, _ = random_words(samples, purpose, seed=seed, epoch=epoch, stream=stream)
    return (high << 31) | (low >> 1)


def permutation(
    count: int, *, seed: int, epoch: int = 0, stream: int = 0, device: torch.device | None = None
) -> Tensor:
    """Return the order (count,) int64 in which an epoch visits its samples; it is the same on every device."""
    keys = random_keys(
        count, Purpose.ORDER, seed=seed, epoch=epoch, stream=stream, device=device or torch.device("cpu")
    )
    return keys.argsort(stable=True)


def bounded_integers(words: Tensor, bound: int) -> Tensor:
    """Map words to uniform integers 0 .. bound - 1, for bound <= 2**31.

    The relative frequency of a value is off by at most bound / 2**32. Source: Lemire, "Fast Random Integer Generation
    in an Interval", 2019, without the rejection step.
    """
    return words * bound >> 32


def normal(radii: Tensor, angles: Tensor) -> Tensor:
    """Return standard normal numbers in float64, each from two words; their magnitude is at most 6.8.

    Source: Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958, the cosine of the pair.
    """
    radius = (-2.0 * ((radii.double() + 0.5) / 2**32).log()).sqrt()  # half a step away from log(0)
    return radius * (angles.double() * (2.0 * math.pi / 2**32)).cos()


def weights_seed(seed: int, number: int) -> int:
    """The seed of the weights of one of several networks of a run, by its number."""
    return int(random_words(torch.tensor(number), Purpose.WEIGHTS, seed=seed)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator while the context is open, as initial weights are drawn, and restore its state after.

    The generators of GPUs are never touched.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


@contextmanager
def all_seeded(seed: int) -> Iterator[None]:
    """The same as `seeded`, for the generators of `random` and `numpy.random`, too, from which networks of others may
    draw."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed([seed & _MASK, seed >> 32 & _MASK])
    try:
        with seeded(seed):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextmanager
def seeded_layers(seed: int, epoch: int, *, student: int = 0, on_cuda: bool = False) -> Iterator[None]:
    """Context manager in which the numbers that layers draw, as dropout does, depend on these three numbers alone.

    Args:
        seed: seed of the run, 0 .. 2**63 - 1.
        epoch: 0-based epoch.
        student: 0 .. 2**32 - 1; separates students that train under one seed.
        on_cuda: whether captured steps draw, which read the seed of CUDA when they are replayed.
    """
    word = int(random_words(torch.tensor(student), Purpose.LAYERS, seed=seed, epoch=epoch)[0])
    with all_seeded(word):
        if on_cuda:
            torch.cuda.manual_seed(word)
        yield


def next_numbers() -> tuple[float, float, float]:
    """The next number of each generator that `all_seeded` seeds, by which one can tell whether any was drawn from."""
    return float(torch.rand(())), random.random(), np.random.random()
