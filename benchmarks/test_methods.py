"""A training step under every method, beside plain cross-entropy: see `benchmarks.method_steps`."""

from functools import cache
from typing import Any

import pytest

from benchmarks import method_steps
from benchmarks.recorded import DEVICE, clock, now, throughput
from tfkd_fast import throughput as bench
from tfkd_fast.device import resolve_compute
from tfkd_fast.methods import METHODS
from tfkd_fast.models import ModelSettings

WIDTH, BATCH_SIZE, STEPS = (1.0, 512, 50) if DEVICE.type == "cuda" else (0.25, 64, 5)  # MMKD looks ahead in each fifth


@cache
def measured() -> tuple[dict[str, method_steps.Cost], dict[str, str]]:
    """By method; measured when first asked for."""
    workload = bench.Workload(resolve_compute("auto", "auto", "auto"), ModelSettings(width=WIDTH), BATCH_SIZE, STEPS)
    costs, refused = method_steps.measure(workload, ModelSettings(name="vgg13", width=WIDTH), now.effort.rounds)
    return {cost.method: cost for cost in costs}, refused


@pytest.mark.benchmark(timer=clock, group=f"a step, batch {BATCH_SIZE}")
@pytest.mark.parametrize("method", METHODS)
def test_step(benchmark: Any, method: str) -> None:
    costs, refused = measured()
    if method in refused:
        pytest.skip(refused[method])
    cost = costs[method]
    benchmark.extra_info.update(cost._asdict())
    speed = f"{1e3 * BATCH_SIZE / cost.milliseconds:>11,.0f} images/s, {cost.times_baseline:.2f} x the time of ce"
    throughput.append((f"a step of VGG-8 x{WIDTH:g}, batch {BATCH_SIZE}", method, speed))
    clock.replay(benchmark, cost.seconds)
