"""Training steps of the engine alone: images a second, and on a GPU the kernels of one step.

    python -m benchmarks.engine_step --batch-size 512 --batch-size 64 --out build/gpu-check
    python -m benchmarks.engine_step --batch-size 64 --candidates 8 --out build/gpu-check

Networks are not compiled unless `--compiled` asks for it: the first step then takes a minute. Compiled networks have
torch.compile's own kernels between convolutions, with `--ops cuda` or `--ops triton` those of this package: which are
faster is a comparison of the two. What was measured is written after every case.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from torch.profiler import ProfilerActivity, profile

from tfkd_fast.device import determinism, resolve_compute
from tfkd_fast.models import ModelSettings
from tfkd_fast.ops import backends
from tfkd_fast.strict_json import to_json
from tfkd_fast.throughput import Workload
from tfkd_fast.throughput.workload import engine_epoch
from tfkd_fast.training.groups import SideBySide

WARM_UP, ROUNDS = 2, 5
STEPS = {"cuda": 40, "cpu": 2}


def measured(workload: Workload, candidates: int, way: SideBySide) -> dict[str, Any]:
    """Seconds of the first epoch, which compiles and captures, and the median of later ones; kernels of one epoch."""
    epoch = engine_epoch(workload, candidates, way)
    seconds = []
    for _ in range(WARM_UP + ROUNDS):
        started = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - started)  # an epoch ends with figures that the host reads
    median = statistics.median(seconds[WARM_UP:])
    return {
        "batch_size": workload.batch_size,
        "candidates": candidates,
        "way": way,
        "compiled": workload.compute.compile,
        "ops": backends.forced(),
        "first_seconds": seconds[0],
        "step_milliseconds": 1e3 * median / workload.steps,
        "images_per_second": candidates * workload.images / median,
        "kernels": kernels(epoch, workload.steps) if workload.compute.device.type == "cuda" else [],
    }


def kernels(epoch: Callable[[], None], steps: int) -> list[dict[str, Any]]:
    """Name, launches a step and microseconds a step of every kernel, copy and fill, the longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        epoch()
        torch.cuda.synchronize()
    rows = [
        {"name": event.key, "launches": event.count / steps, "microseconds": event.self_device_time_total / steps}
        for event in recorded.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(rows, key=lambda row: -row["microseconds"])


def cases(options: argparse.Namespace) -> Iterator[tuple[Workload, int, SideBySide]]:
    """Every batch size with every number of candidates, and of several candidates every way to train them."""
    compute = resolve_compute(options.device, "auto", "on" if options.compiled else "off")
    for batch_size in options.batch_size:
        workload = Workload(compute, ModelSettings(width=options.width), batch_size, STEPS[options.device])
        for candidates in options.candidates or [1]:
            for way in get_args(SideBySide) if candidates > 1 else ("sequential",):
                yield workload, candidates, way


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batch-size", type=int, action="append", required=True)
    parser.add_argument("--candidates", type=int, action="append", help="number of students side by side")
    parser.add_argument("--width", type=float, default=1.0, help="of VGG-8")
    parser.add_argument("--compiled", action="store_true", help="let torch compile the network")
    parser.add_argument("--ops", choices=["auto", *backends.BACKENDS], default="auto", help="the backend of operators")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    name = "-".join(map(str, ["step", *options.batch_size, *(options.candidates or [])]))
    name += "-compiled" * options.compiled + f"-{options.ops}" * (options.ops != "auto")
    rows = []
    with determinism(False), backends.using_backend(options.ops):  # deterministic as a run is
        for workload, candidates, way in cases(options):
            row = measured(workload, candidates, way)
            rows.append(row)
            (options.out / f"{name}.json").write_text(to_json(rows, indent=1) + "\n")
            what = f"batch {workload.batch_size}, {candidates} x {way}"
            print(f"{what}: {row['step_milliseconds']:.2f} ms a step", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
