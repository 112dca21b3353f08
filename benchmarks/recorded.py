"""Measured rows as pytest-benchmark shows and stores them.

pytest-benchmark times one function after another. Here the variants of a case are timed in turns beforehand, and it is
given their times by a clock that they drive: its statistics, groups, JSON and comparisons are of those times.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.harness import OURS, Case, measured, our_backends
from benchmarks.rows import rows_of
from tfkd_fast.ops import backends

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Effort(NamedTuple):
    """How long a suite measures."""

    seconds: float
    """Of a case of an operator."""
    rounds: int
    """Of a training step."""
    compiled: bool
    """Whether what torch compiles is measured, which takes seconds a case to compile."""
    most_bytes: float
    """Cases that move more are left out."""


FULL, REDUCED = Effort(1.0, 5, True, float("inf")), Effort(0.1, 3, False, 100e6)


class _Now:
    """The effort of this session: `pytest --benchmark` reduces it."""

    effort = FULL


now = _Now()

throughput: list[tuple[str, str, str]] = []
"""What was measured: the case, the variant, and how fast it is in words."""


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
    rows = [row for case in cases if DEVICE.type in case.devices for row in _rows(case)]
    parametrize = pytest.mark.parametrize(("case", "variant"), rows)
    return lambda function: pytest.mark.benchmark(timer=clock)(parametrize(function))


def _rows(case: Case) -> Iterator[Any]:
    """A test for each of our backends that serves, or one that is skipped and says why none does."""
    name = f"{case.shape} {case.name.split()[-1]}"
    served = our_backends(case.operator, DEVICE, case.dtype)
    for backend in served:
        yield pytest.param(case, backend, id=f"{name} {backend}")
    if not served:
        reason = pytest.mark.skip(reason=why_not_served(case))
        yield pytest.param(case, "none", id=f"{name} none", marks=reason)


def why_not_served(case: Case) -> str:
    """Why none of our backends serves a case on this device."""
    (operator,) = [one for one in backends.status(DEVICE, case.dtype) if one.name == case.operator]
    refused = [
        f"{one.name}: {one.reason}" for one in operator.backends if backends.DEVICES.get(one.name) == DEVICE.type
    ]
    return f"no backend of ours serves {case.operator} on {DEVICE.type}: {'; '.join(refused) or 'there is none'}"


def show(benchmark: Any, case: Case, variant: str) -> None:
    """Give a row to pytest-benchmark; measures the case when it is first asked for."""
    assert variant in OURS
    if case.bytes_moved > now.effort.most_bytes:
        pytest.skip(f"moves {case.bytes_moved / 1e6:,.0f} MB: too large for --benchmark, not for benchmarks/ alone")
    arguments = case, DEVICE, now.effort.seconds, now.effort.compiled
    row = next(row for row in rows_of(*arguments) if row.variant == variant)
    benchmark.group = case.name
    benchmark.extra_info.update(row._asdict())
    ratios = ", ".join(f"{ratio:.2f} x {rival}" for rival, ratio in row.ratios.items())
    throughput.append((case.name, variant, f"{1e6 / row.microseconds:>11,.0f} calls/s   {ratios}"))
    clock.replay(benchmark, measured(*arguments)[variant].seconds)
