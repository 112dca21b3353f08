"""Random numbers that are a function of what they are for, not of what was drawn before.

A word is named by (seed, epoch, stream, purpose, sample). So every loader draws the same augmentation, a resumed run
goes on exactly, and no generator state is kept anywhere. Words are integers 0 .. 2**32 - 1, held in int64 tensors.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import torch
from torch import Tensor

Words = tuple[Tensor, Tensor, Tensor, Tensor]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Purpose(IntEnum):
    """What a random number is for. The values are part of every result: never change one."""

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


def philox(counter: Words, key: tuple[int | Tensor, int | Tensor]) -> Words:
    """Philox4x32-10: four random words from four counter words and two key words.

    `counter` holds int64 tensors of words that broadcast against each other and the key, on any device; the four
    results have the broadcast shape.

    Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 4.3.
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
    """Four words for every sample.

    `samples` int64 of any shape, values 0 .. 2**32 - 1; 0 <= seed < 2**64; epoch and stream fit 32 bits. `stream` tells
    apart runs that share a seed, such as the candidates of a population. The three may be int64 tensors that broadcast
    against `samples`, of which a seed is below 2**63; their values are not checked: the host would wait for the device.
    """
    for name, value, limit in (("seed", seed, 64), ("epoch", epoch, 32), ("stream", stream, 32)):
        if isinstance(value, int) and not 0 <= value < 2**limit:
            raise ValueError(f"{name} must be in 0 .. 2**{limit} - 1, got {value}")
    counter = (
        value if isinstance(value, Tensor) else torch.full((), value, dtype=torch.int64, device=samples.device)
        for value in (epoch, purpose, stream)
    )
    return philox((samples, *counter), (seed & _MASK, seed >> 32))  # type: ignore[arg-type]  # four by construction


def random_keys(count: int, purpose: Purpose, *, seed: int, epoch: int, stream: int, device: torch.device) -> Tensor:
    """(count,) int64, uniform on 0 .. 2**63 - 1: the keys to sort 0 .. count - 1 by."""
    samples = torch.arange(count, device=device)
    high, low, _, _ = random_words(samples, purpose, seed=seed, epoch=epoch, stream=stream)
    return (high << 31) | (low >> 1)


def permutation(
    count: int, *, seed: int, epoch: int = 0, stream: int = 0, device: torch.device | None = None
) -> Tensor:
    """The order in which an epoch visits its samples: (count,) int64, the same on every device."""
    keys = random_keys(
        count, Purpose.ORDER, seed=seed, epoch=epoch, stream=stream, device=device or torch.device("cpu")
    )
    return keys.argsort(stable=True)


def bounded_integers(words: Tensor, bound: int) -> Tensor:
    """Uniform integers 0 .. bound - 1 from words; no value is off by more than bound / 2**32 in relative frequency.

    Source: Lemire, "Fast Random Integer Generation in an Interval", 2019, without the rejection step. bound <= 2**31.
    """
    return words * bound >> 32


def normal(radii: Tensor, angles: Tensor) -> Tensor:
    """Standard normal numbers (float64) from two words each, at most 6.8 away from 0.

    Source: Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958, the cosine of the pair.
    """
    radius = (-2.0 * ((radii.double() + 0.5) / 2**32).log()).sqrt()  # half a step away from log(0)
    return radius * (angles.double() * (2.0 * math.pi / 2**32)).cos()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While it is open torch draws from `seed` on the CPU, as initial weights are drawn. At its end the global random
    state is what it was, and that of GPUs is never touched."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
