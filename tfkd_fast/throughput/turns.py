"""Variants are measured in turns, so that a slow phase of the machine affects all of them.

Figures are medians; ratios are medians of the ratios within a turn.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from tfkd_fast.device import determinism


class Measurement(NamedTuple):
    """The throughput of one variant."""

    variant: str
    """Name of the variant."""
    images_per_second: float
    """Median throughput over the rounds."""
    spread: float
    """Half the interquartile range of the seconds over their median."""
    seconds: list[float]
    """Duration of each round, seconds."""


class Ratio(NamedTuple):
    """How many times as fast one variant is as another."""

    median: float
    """Median over the rounds."""
    spread: float
    """Half the interquartile range over the median."""


def measure_interleaved(variants: Mapping[str, Callable[[], object]], work: int, rounds: int) -> list[Measurement]:
    """Measure variants in turns and return one row for each, in their order.

    One uncounted call of each comes first: it compiles, captures and fills caches.

    Args:
        variants: functions by name; one call is one measurement.
        work: number of images, or of other units, of one call.
        rounds: number of measurements of each variant, 2 or more.
    """

    def timed(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with determinism(False):  # as a run has it: libraries may look for the fastest kernel
        for run in variants.values():
            timed(run)
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(timed(variants[name]))
    return [_row(name, work, values) for name, values in seconds.items()]


def ratio(ours: Measurement, rival: Measurement) -> Ratio:
    """Return how many times as fast `ours` is as `rival`, which was measured in the same turns for the same work."""
    return Ratio(*_median_and_spread([b / a for a, b in zip(ours.seconds, rival.seconds, strict=True)]))


def _row(name: str, work: int, seconds: list[float]) -> Measurement:
    median, spread = _median_and_spread(seconds)
    return Measurement(name, work / median, spread, seconds)


def _median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return median, (high - low) / 2 / median
