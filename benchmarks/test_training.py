"""Whole training steps and evaluations beside loops written by hand, and candidates side by side: `tfkd-fast bench`."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from benchmarks.recorded import DEVICE, clock, now, throughput
from tfkd_fast import throughput as bench
from tfkd_fast.device import resolve_compute
from tfkd_fast.models import ModelSettings

BATCH_SIZE, STEPS = (512, 90) if DEVICE.type == "cuda" else (64, 8)


def workload(**more: Any) -> bench.Workload:
    return bench.Workload(resolve_compute("auto", "auto", "auto"), ModelSettings(), BATCH_SIZE, STEPS, **more)


def with_labels() -> list[bench.Measurement]:
    return bench.measure_training(workload(), now.effort.rounds, compiled=now.effort.compiled)


def with_teacher() -> list[bench.Measurement]:
    one = workload(method="kd", teacher=ModelSettings(name="vgg13"))
    return bench.measure_training(one, now.effort.rounds, compiled=False)


def evaluation() -> list[bench.Measurement]:
    return bench.measure_evaluation(workload(), now.effort.rounds)


def candidates() -> list[bench.Measurement]:
    return bench.measure_populations(workload(), [4], ("sequential", "streams", "stacked"), now.effort.rounds)[4]


LOOPS = ["tfkd-fast", "careful", "fp32-dataloader"]
MEASUREMENTS: dict[str, tuple[Callable[[], list[bench.Measurement]], list[str]]] = {
    "training step": (with_labels, [*LOOPS, "careful-compiled"]),
    "training step with a teacher": (with_teacher, LOOPS),
    "evaluation": (evaluation, LOOPS[:2]),
    "4 candidates": (candidates, ["sequential", "streams", "stacked", "processes-by-hand"]),
}


@cache
def measured(what: str) -> list[bench.Measurement]:
    """Measured when first asked for."""
    return MEASUREMENTS[what][0]()


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(
    ("what", "index"),
    [
        pytest.param(what, index, id=f"{what}-{name}")
        for what, (_, names) in MEASUREMENTS.items()
        for index, name in enumerate(names)
    ],
)
def test_training(benchmark: Any, what: str, index: int) -> None:
    name = MEASUREMENTS[what][1][index]
    if name == "careful-compiled" and not now.effort.compiled:
        pytest.skip("takes a minute to compile: too long for --benchmark, not for benchmarks/ alone")
    if name == "processes-by-hand" and DEVICE.type != "cpu":
        pytest.skip("processes by hand are measured on the processor alone")
    rows = measured(what)
    row, ours = rows[index], max(rows[: 3 if what == "4 candidates" else 1], key=lambda row: row.images_per_second)
    benchmark.group = f"{what}, VGG-8, batch {BATCH_SIZE}"
    benchmark.extra_info["images_per_second"] = row.images_per_second
    benchmark.extra_info["ratios"] = {rival.variant: bench.ratio(row, rival).median for rival in rows}
    times = bench.ratio(ours, row).median
    throughput.append((benchmark.group, row.variant, f"{row.images_per_second:>11,.0f} images/s, ours {times:.2f} x"))
    clock.replay(benchmark, row.seconds)
