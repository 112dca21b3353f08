"""All checks on a GPU, in parts of a few minutes together; each has a time after which it is killed.

    python -m benchmarks.gpu_check --out build/gpu-check                    # all parts, in their order
    python -m benchmarks.gpu_check --out build/gpu-check --part step        # one of them; may be given again
    python -m benchmarks.gpu_check --out build/gpu-check --device cpu --shorten 0.2   # a rehearsal without a GPU
    python -m benchmarks.gpu_check --wheels                                 # what the package needs beside torch

A part writes what it measured after every case, so that one that is killed loses its last case alone. `parts.json` says
of every part how long it took and how it ended; `NAME.log` has what it printed. `--archive` keeps all of that, but
weights, in one file, renewed after every part. With `--data` a student is trained on that file; `benchmarks.gpu_data`
makes one that is small enough to be carried. The exit code is 1 where a part failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from tfkd_fast.strict_json import to_json


class Part(NamedTuple):
    """A piece of the check, a process of its own."""

    name: str
    seconds: float
    """After which it is killed."""
    command: tuple[str, ...]
    """Arguments of Python; {device}, {out} and {data} are filled in."""


LOSSES = ("--operator", "soft_target_loss", "--operator", "distillation_loss", "--operator", "peer_loss")
MEASURE = ("-m", "benchmarks.run", "--device", "{device}", "--quick", "--no-compiled", "--out", "{out}")
STEP = ("-m", "benchmarks.engine_step", "--device", "{device}", "--out", "{out}")
TESTS = ("-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider")  # a line for each test as it ends

# What the others rest on comes first, and what takes longest last.
PARTS = [
    Part("values", 40, ("-m", "benchmarks.operator_values", "--device", "{device}", "--out", "{out}")),
    Part("images", 40, (*TESTS, "tests/ops/test_norm_relu_pool.py")),
    Part("graphs", 60, (*TESTS, "tests/training/test_epoch.py", "tests/training/test_step.py")),
    Part("step", 50, (*STEP, "--batch-size", "512", "--batch-size", "64")),
    Part("first-convolution", 20, ("-m", "benchmarks.first_convolution", "--device", "{device}", "--out", "{out}")),
    Part("losses", 90, (*MEASURE, *LOSSES)),
    Part("compiled-step", 100, (*STEP, "--batch-size", "512", "--compiled")),
    Part("compiled-step-ops", 90, (*STEP, "--batch-size", "512", "--compiled", "--ops", "cuda")),
    Part("population", 70, (*STEP, "--batch-size", "64", "--candidates", "8")),
    Part("operators", 80, MEASURE),
    Part("memory", 80, (*TESTS, "tests/ops/test_compute_sanitizer.py", "-k", "memcheck or foreign")),
]
TRAIN = ("-m", "tfkd_fast", "train", "--dataset", "npz", "--data-root", "{data}", "--device", "{device}")
WITH_DATA = [
    Part(
        "train",
        60,
        (*TRAIN, "--method", "ce", "--epochs", "60", "--compile", "off", "--out", "{out}/run", "--overwrite"),
    ),
]

BESIDE = ("torch", "triton", "numpy", "pytest", "hypothesis")
"""What a machine with a GPU has: with all that they require nothing of it is carried."""


NO_TESTS = 5
"""The exit code of pytest where none is left, as those of a GPU are not where there is none."""


class Outcome(NamedTuple):
    """How a part ended."""

    part: str
    seconds: float
    limit: float
    exit_code: int | None
    """None: it was killed at its limit."""


def run_part(part: Part, out: Path, device: str, shorten: float, data: Path | None) -> Outcome:
    """Run a part, with all that it starts, for at most its time."""
    limit = part.seconds * shorten
    arguments = [argument.format(device=device, out=out, data=data) for argument in part.command]
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


def run_parts(
    parts: Sequence[Part],
    out: Path,
    device: str,
    shorten: float,
    data: Path | None = None,
    archive: Path | None = None,
) -> list[Outcome]:
    """Run parts one after the other; `parts.json` and the archive have the outcome of each as soon as it has ended."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for part in parts:
        print(f"{part.name} (at most {part.seconds * shorten:g} s): ", end="", flush=True)
        outcomes.append(run_part(part, out, device, shorten, data))
        (out / "parts.json").write_text(to_json([one._asdict() for one in outcomes], indent=1) + "\n")
        if archive is not None:
            keep_in(archive, out)
        how = {None: "killed", 0: "done", NO_TESTS: "nothing to run"}.get(
            outcomes[-1].exit_code, f"failed, see {out / part.name}.log"
        )
        print(f"{how} after {outcomes[-1].seconds:.1f} s", flush=True)
    return outcomes


LARGEST = 1_000_000
"""Bytes of a file that is archived: results are smaller, the weights of a student are not."""


def keep_in(archive: Path, folder: Path) -> None:
    """Put a folder into one file, in place of what was there; files beyond `LARGEST` are left out."""
    new = archive.with_name(f"{archive.name}.new")
    with tarfile.open(new, "w:gz") as file:
        file.add(folder, folder.name, filter=lambda one: one if one.size <= LARGEST else None)
    new.replace(archive)


def required_by(names: Sequence[str]) -> dict[str, str]:
    """Name and version of distributions and of all that they require here, extras left out."""
    found: dict[str, str] = {}
    wanted = list(names)
    while wanted:
        try:
            one = distribution(wanted.pop())
        except PackageNotFoundError:
            continue
        name = one.metadata["Name"].lower().replace("_", "-")
        if name not in found:
            found[name] = one.version
            requirements = map(Requirement, one.requires or ())
            wanted += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def wheels() -> list[str]:
    """What has to be carried, for `pip download --no-deps --only-binary :all: --python-version ...`."""
    there = required_by(BESIDE)
    needed = required_by(["tfkd-fast"])
    return [f"{name}=={version}" for name, version in sorted(needed.items()) if name not in (*there, "tfkd-fast")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"), help="folder for logs and JSON files")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--part", action="append", choices=[part.name for part in PARTS + WITH_DATA], help="this only")
    parser.add_argument("--shorten", type=float, default=1.0, help="factor of all times")
    parser.add_argument("--data", type=Path, help="an .npz data set to train on")
    parser.add_argument("--archive", type=Path, help="one file that has all of --out, too")
    parser.add_argument("--wheels", action="store_true", help="list what the package needs beside torch, and end")
    options = parser.parse_args()
    if options.wheels:
        print("\n".join(wheels()))
        return 0
    parts = PARTS + WITH_DATA * (options.data is not None)
    parts = [part for part in parts if options.part is None or part.name in options.part]
    outcomes = run_parts(parts, options.out, options.device, options.shorten, options.data, options.archive)
    return int(any(one.exit_code not in (0, None, NO_TESTS) for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
