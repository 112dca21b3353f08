"""The training step of VGG-8 beside loops written by hand, and candidates side by side: see `tfkd-fast bench`."""

from functools import cache
from typing import Any

import pytest

from benchmarks.recorded import DEVICE, clock
from tfkd_fast import throughput as bench
from tfkd_fast.device import resolve_compute
from tfkd_fast.models import ModelSettings

BATCH_SIZE, STEPS, ROUNDS = (512, 90, 5) if DEVICE.type == "cuda" else (128, 10, 5)
WAYS = ("sequential", "streams", "stacked")


@cache
def workload() -> bench.Workload:
    return bench.Workload(resolve_compute("auto", "auto", "auto"), ModelSettings(), BATCH_SIZE, STEPS)


@cache
def loops() -> list[bench.Measurement]:
    return bench.measure_training(workload(), ROUNDS, compiled=True)


@cache
def side_by_side(candidates: int) -> list[bench.Measurement]:
    return bench.measure_populations(workload(), [candidates], WAYS, ROUNDS)[candidates]


def show(benchmark: Any, rows: list[bench.Measurement], row: bench.Measurement) -> None:
    benchmark.extra_info["images_per_second"] = row.images_per_second
    benchmark.extra_info["ratios"] = {rival.variant: row.images_per_second / rival.images_per_second for rival in rows}
    clock.replay(benchmark, row.seconds)


@pytest.mark.benchmark(timer=clock, group=f"an epoch of {STEPS} steps, batch {BATCH_SIZE}")
@pytest.mark.parametrize("variant", range(4), ids=["tfkd-fast", "careful", "fp32-dataloader", "careful-compiled"])
def test_training(benchmark: Any, variant: int) -> None:
    show(benchmark, loops(), loops()[variant])


@pytest.mark.parametrize("way", range(3), ids=WAYS)
@pytest.mark.parametrize("candidates", [2, 4])
@pytest.mark.benchmark(timer=clock)
def test_population(benchmark: Any, candidates: int, way: int) -> None:
    benchmark.group = f"{candidates} candidates side by side, batch {BATCH_SIZE}"
    show(benchmark, side_by_side(candidates), side_by_side(candidates)[way])
