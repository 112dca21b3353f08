"""Images a second of one student by one process with all threads, and by a process for each thread.

    python -m benchmarks.shared_batches [--model vgg8] [--width 0.5] [--batch-size 64] [--devices 2] [--rounds 3]

Every variant is a run of its own by `tfkd-fast train`, in turns; the figure is that of its summary, which counts the
seconds of training alone. Processes share the batches of the one process, so that all train the same student.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table


def images_per_second(out: Path, devices: int, threads: int, options: list[str]) -> float:
    """Train a run in a folder by so many processes with so many threads each; returns its images a second."""
    command = [sys.executable, "-m", "tfkd_fast", "train", "digits", "--method", "ce", "--device", "cpu"]
    command += [*options, "--devices", str(devices), "--out", str(out), "--overwrite"]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True, stdout=subprocess.DEVNULL)
    return float(json.loads((out / "summary.json").read_text())["images_per_second"])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vgg8")
    parser.add_argument("--width", default="0.5")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch-size", default="64")
    parser.add_argument("--epochs", default="3")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    options = ["--model", given.model, "--set", f"model.width={given.width}", "--precision", given.precision]
    options += ["--batch-size", given.batch_size, "--epochs", given.epochs]
    several = f"{given.devices} processes, 1 thread each, batch norm"
    variants = {
        f"1 process, {given.devices} threads": (1, given.devices, options),
        f"{several} synchronised": (given.devices, 1, options),
        f"{several} of each part": (given.devices, 1, [*options, "--set", "sync_batch_norm=false"]),
    }
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            for name, variant in variants.items():
                speeds[name].append(images_per_second(Path(folder) / "run", *variant))
    table, first = Table("variant", "images/s, median", "of the first"), median(next(iter(speeds.values())))
    for name, measured in speeds.items():
        table.add_row(name, f"{median(measured):,.0f}", f"{median(measured) / first:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
