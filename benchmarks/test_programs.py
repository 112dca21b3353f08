"""The training step beside other people's programs: see `benchmarks.peers`."""

from functools import cache
from typing import Any

import pytest

from benchmarks import peers
from benchmarks.recorded import clock, now, throughput
from tfkd_fast import throughput as bench
from tfkd_fast.device import resolve_compute
from tfkd_fast.models import ModelSettings

BATCH_SIZE, STEPS = 64, 16


@cache
def measured() -> tuple[list[bench.Measurement], dict[str, str]]:
    """Measured when first asked for."""
    workload = bench.Workload(resolve_compute("auto", "auto", "auto"), ModelSettings(), BATCH_SIZE, STEPS)
    return peers.measure(workload, now.effort.rounds)


@pytest.mark.benchmark(timer=clock, group=f"other programs, VGG-8, batch {BATCH_SIZE}")
@pytest.mark.parametrize("name", ["tfkd-fast", "by hand", "timm", "Lightning", "RepDistiller"])
def test_programs(benchmark: Any, name: str) -> None:
    rows, missing = measured()
    for program, reason in missing.items():
        if program.startswith(name):
            pytest.skip(f"{program} was not measured: {reason}")
    (row,) = [row for row in rows if row.variant.startswith(name)]
    times = bench.ratio(rows[0], row).median
    benchmark.extra_info["images_per_second"], benchmark.extra_info["tfkd_fast_is"] = row.images_per_second, times
    throughput.append((benchmark.group, row.variant, f"{row.images_per_second:>11,.0f} images/s, ours {times:.2f} x"))
    clock.replay(benchmark, row.seconds)
