"""Measured rows as pytest-benchmark shows and stores them.

pytest-benchmark times one function after another. Here the variants of a case are timed in turns beforehand, and it is
given their times by a clock that they drive: its statistics, groups, JSON and comparisons are of those times.
"""

from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import Any

import pytest
import torch

from benchmarks.harness import OURS, Case, measured, our_backends
from benchmarks.rows import rows_of

SECONDS = 1.0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Clock:
    """Stands still but for what it is told to move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def replay(self, benchmark: Any, seconds: Sequence[float]) -> None:
        """Give a benchmark that runs by this clock the seconds of its rounds."""
        steps = chain(seconds, repeat(0.0))

        def one_round() -> None:
            self.now += next(steps)

        benchmark.pedantic(one_round, rounds=len(seconds))


clock = _Clock()


def each(cases: list[Case]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test for each of our backends in each case; its rivals are in the row's `extra_info`."""
    rows = [
        pytest.param(case, name, id=f"{case.shape} {case.name.split()[-1]} {name}")
        for case in cases
        if DEVICE.type in case.devices
        for name in our_backends(case.operator, DEVICE, case.dtype)
    ]
    parametrize = pytest.mark.parametrize(("case", "variant"), rows)
    return lambda function: pytest.mark.benchmark(timer=clock)(parametrize(function))


def show(benchmark: Any, case: Case, variant: str) -> None:
    """Give a row to pytest-benchmark; measures the case when it is first asked for."""
    assert variant in OURS
    benchmark.group = case.name
    benchmark.extra_info.update(next(row for row in rows_of(case, DEVICE, SECONDS) if row.variant == variant)._asdict())
    clock.replay(benchmark, measured(case, DEVICE, SECONDS)[variant].seconds)
