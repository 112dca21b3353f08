"""Which algorithm a measurement chooses, by a clock that is known."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from tfkd_fast.ops import conv_algorithms
from tfkd_fast.ops.conv_algorithms import TORCH, Algorithm, Algorithms, Convolution, Pass
from tfkd_fast.ops.conv_measurement import measure

BATCH = 4
TRAINING: tuple[Pass, ...] = ("forward", "input_gradient", "weight_gradient")
SHAPE = Convolution(16, 8, 8, 24, torch.float32)


def test_measuring_chooses_among_the_algorithms_that_serve() -> None:
    tiny = Convolution(8, 4, 4, 8, torch.float32)
    wanted: dict[Convolution, frozenset[Pass]] = {
        SHAPE: frozenset({*TRAINING, "inference"}),
        tiny: frozenset({"inference"}),
    }
    choices = measure(wanted, BATCH)
    assert choices.keys() == wanted.keys()
    for convolution, algorithms in choices.items():
        for name, own in algorithms._asdict().items():
            assert own in conv_algorithms.serving(name, convolution, BATCH)
    assert choices[tiny][:3] == TORCH[:3]


TIMES = {
    "torch": {"forward": 10.0, "input_gradient": 10.0, "weight_gradient": 10.0},
    "quick": {"forward": 7.0, "input_gradient": 9.8, "weight_gradient": 50.0},
    "other": {"forward": 8.0, "input_gradient": 12.0, "weight_gradient": 9.0},
}


class Clock:
    """A clock that stands still but for what algorithms take, and for a tick whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        self.now += 1e-3
        return self.now

    def algorithm(self, seconds: dict[str, float], otherwise: float, by_torch: Algorithm) -> Algorithm:
        """torch's algorithm, each pass of which takes so many seconds for batches of BATCH; it serves no others."""

        def slowed(name: str) -> Any:
            def call(*tensors: Tensor) -> Tensor:
                self.now += seconds[name] if len(tensors[0]) == BATCH else otherwise
                return getattr(by_torch, name)(*tensors)

            return call

        return Algorithm(*map(slowed, TRAINING), lambda name, x, *call: x[0] == BATCH)


def use_times(times: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch, overhead: float = 0.0) -> None:
    """Measure by a clock by which the algorithms take these seconds, and a step by several of them so much more."""
    clock, by_torch = Clock(), conv_algorithms.ALGORITHMS["torch"]
    for name in list(conv_algorithms.ALGORITHMS):
        monkeypatch.delitem(conv_algorithms.ALGORITHMS, name)
    for name, seconds in times.items():
        monkeypatch.setitem(conv_algorithms.ALGORITHMS, name, clock.algorithm(seconds, overhead / 3, by_torch))
    monkeypatch.setattr(time, "perf_counter", clock.read)


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        (TRAINING, ("quick", "torch", "other")),  # 9.8 is not clearly less than 10
        (("forward", "weight_gradient"), ("quick", "torch", "other")),
        (("forward",), ("quick", "torch", "torch")),
    ],
)
def test_the_fastest_algorithm_of_each_pass_is_chosen(
    passes: tuple[Pass, ...], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_times(TIMES, monkeypatch)
    assert measure({SHAPE: frozenset(passes)}, BATCH) == {SHAPE: Algorithms(*expected)}


def test_on_a_slow_machine_the_first_turn_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {name: {key: 10 * seconds for key, seconds in times.items()} for name, times in TIMES.items()}
    use_times(slow, monkeypatch)
    started = time.perf_counter()
    assert measure({SHAPE: frozenset(TRAINING)}, BATCH) == {SHAPE: Algorithms("quick", "torch", "other")}
    once = sum(sum(times.values()) for times in slow.values())
    assert time.perf_counter() - started == pytest.approx(2 * once, rel=0.01)  # each call is made once before, too


def test_an_algorithm_that_does_not_serve_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    use_times(TIMES, monkeypatch)
    monkeypatch.setitem(conv_algorithms.ALGORITHMS, "torch", conv_algorithms.ALGORITHMS["torch"]._replace(serves=every))
    assert measure({SHAPE: frozenset(TRAINING)}, BATCH + 1) == {SHAPE: TORCH}


def every(*call: Any) -> bool:
    return True


def test_a_gain_below_the_overhead_of_python_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other algorithm gains 2.7 s in three passes, and 0.9 s in the first one, where nothing is differentiated."""
    times = {"torch": dict.fromkeys(TRAINING, 1.0), "quick": dict.fromkeys(TRAINING, 0.1)}
    use_times(times, monkeypatch, overhead=3.0)
    assert measure({SHAPE: frozenset(TRAINING)}, BATCH) == {SHAPE: TORCH}
    assert measure({SHAPE: frozenset({"forward"})}, BATCH) == {SHAPE: Algorithms(forward="quick")}
    use_times(times, monkeypatch, overhead=2.4)
    assert measure({SHAPE: frozenset(TRAINING)}, BATCH) == {SHAPE: Algorithms("quick", "quick", "quick")}
