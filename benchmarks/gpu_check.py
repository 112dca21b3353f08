"""All checks on a GPU, in parts of a few minutes together; each has a time after which it is killed.

    python -m benchmarks.gpu_check --out build/gpu-check                    # all parts, in their order
    python -m benchmarks.gpu_check --out build/gpu-check --part step        # one of them; may be given again
    python -m benchmarks.gpu_check --out build/gpu-check --device cpu --shorten 0.2   # a rehearsal without a GPU

A part writes what it measured after every case, so that one that is killed loses its last case alone. `parts.json` says
of every part how long it took and how it ended; `NAME.log` has what it printed. The exit code is 1 where one failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tfkd_fast.strict_json import to_json


class Part(NamedTuple):
    """A piece of the check, a process of its own."""

    name: str
    seconds: float
    """After which it is killed."""
    command: tuple[str, ...]
    """Arguments of Python; {device} and {out} are filled in."""


LOSSES = ("--operator", "soft_target_loss", "--operator", "distillation_loss", "--operator", "peer_loss")
MEASURE = ("-m", "benchmarks.run", "--device", "{device}", "--quick", "--no-compiled", "--out", "{out}")
STEP = ("-m", "benchmarks.engine_step", "--device", "{device}", "--out", "{out}")
TESTS = ("-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider")  # a line for each test as it ends

# What the others rest on comes first, and what takes longest last.
PARTS = [
    Part("values", 40, ("-m", "benchmarks.operator_values", "--device", "{device}", "--out", "{out}")),
    Part("graphs", 60, (*TESTS, "tests/training/test_epoch.py", "tests/training/test_step.py")),
    Part("step", 60, (*STEP, "--batch-size", "512", "--batch-size", "64")),
    Part("losses", 120, (*MEASURE, *LOSSES)),
    Part("compiled-step", 120, (*STEP, "--batch-size", "512", "--compiled")),
    Part("population", 90, (*STEP, "--batch-size", "64", "--candidates", "8")),
    Part("memory", 90, (*TESTS, "tests/ops/test_compute_sanitizer.py", "-k", "memcheck or foreign")),
    Part("operators", 60, MEASURE),
]


NO_TESTS = 5
"""The exit code of pytest where none is left, as those of a GPU are not where there is none."""


class Outcome(NamedTuple):
    """How a part ended."""

    part: str
    seconds: float
    limit: float
    exit_code: int | None
    """None: it was killed at its limit."""


def run_part(part: Part, out: Path, device: str, shorten: float) -> Outcome:
    """Run a part, with all that it starts, for at most its time."""
    limit = part.seconds * shorten
    arguments = [argument.format(device=device, out=out) for argument in part.command]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    with (out / f"{part.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            exit_code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            exit_code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Outcome(part.name, time.perf_counter() - started, limit, exit_code)


def run_parts(parts: Sequence[Part], out: Path, device: str, shorten: float) -> list[Outcome]:
    """Run parts one after the other; `parts.json` has the outcome of each as soon as it has ended."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for part in parts:
        print(f"{part.name} (at most {part.seconds * shorten:g} s): ", end="", flush=True)
        outcomes.append(run_part(part, out, device, shorten))
        (out / "parts.json").write_text(to_json([one._asdict() for one in outcomes], indent=1) + "\n")
        how = {None: "killed", 0: "done", NO_TESTS: "nothing to run"}.get(
            outcomes[-1].exit_code, f"failed, see {out / part.name}.log"
        )
        print(f"{how} after {outcomes[-1].seconds:.1f} s", flush=True)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and JSON files")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--part", action="append", choices=[part.name for part in PARTS], help="this part only")
    parser.add_argument("--shorten", type=float, default=1.0, help="factor of all times")
    options = parser.parse_args()
    parts = [part for part in PARTS if options.part is None or part.name in options.part]
    outcomes = run_parts(parts, options.out, options.device, options.shorten)
    return int(any(one.exit_code not in (0, None, NO_TESTS) for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
