"""Measure every operator beside its rivals; a table, a JSON file, and a comparison with the stored results.

    python -m benchmarks.run                                    # on the GPU if there is one, or else on the processor
    python -m benchmarks.run --operator peer_loss --quick       # one operator, fewer rounds
    python -m benchmarks.run --out benchmarks/results           # what later runs on such a machine are compared with

The exit code is 1 where a ratio to eager PyTorch or torch.compile is clearly below the stored one of the same device
and number of threads.
"""

import argparse
import json
import re
import sys
from importlib import import_module
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Case, is_ours
from benchmarks.rivals import dali, liger
from benchmarks.rows import Row, as_json, from_json, regressions, rows_of
from tfkd_fast.device import Compute
from tfkd_fast.strict_json import to_json

SUITES = [
    "soft_target",
    "distillation",
    "peer",
    "candidate_metrics",
    "rank_binned_targets",
    "rank_candidates",
    "conv3x3",
    "augment",
    "norm_relu_pool",
]
STORED = Path(__file__).parent / "results"
SECONDS, SECONDS_QUICK = 2.0, 0.2


def device_name(device: torch.device) -> str:
    """Such as "AMD EPYC (family 26, model 2), 2 threads"."""
    name = Compute(device, torch.float32).device_name
    return name if device.type == "cuda" else f"{name}, {torch.get_num_threads()} threads"


def cases_of(device: torch.device, operators: list[str]) -> list[Case]:
    cases = [case for suite in SUITES for case in import_module(f"benchmarks.test_{suite}").CASES]
    return [c for c in cases if device.type in c.devices and (not operators or c.operator in operators)]


def as_table(rows: list[Row], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("operator", "shape", "dtype", "variant"):
        table.add_column(heading, no_wrap=True)
    for heading in ("µs", "±", "MB", "GB/s", "copy", "clone", "of copy", "launches"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("times as fast as", no_wrap=True)
    previous = ""
    for row in rows:
        here = f"{row.operator} {row.shape} {row.dtype}"
        if here != previous:
            table.add_section()
        where = (row.operator, row.shape, row.dtype) if here != previous else ("", "", "")
        ratios = ", ".join(f"{rival} {ratio:.2f}" for rival, ratio in row.ratios.items())
        table.add_row(
            *where,
            row.variant,
            f"{row.microseconds:,.1f}",
            f"{row.spread:.0%}",
            f"{row.bytes_moved / 1e6:,.3f}",
            f"{row.gigabytes_per_second:,.1f}",
            f"{row.copy_gigabytes_per_second:,.1f}",
            f"{row.clone_gigabytes_per_second:,.1f}",
            f"{row.share_of_copy:.0%}",
            "" if row.launches is None else str(row.launches),
            ratios,
            style="bold" if is_ours(row.variant) else "",
        )
        previous = here
    return table


def write(file: Path, device: str, rows: list[Row]) -> None:
    """Write the rows of a device to a JSON file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_json({"device": device, "torch": torch.__version__, "rows": as_json(rows)}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--operator", action="append", default=[], help="this operator only; may be given again")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: less exact")
    parser.add_argument("--no-compiled", action="store_true", help="leave out what torch would compile for seconds")
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    known = {case.operator for case in cases_of(device, [])}
    if unknown := set(arguments.operator) - known:
        parser.error(f"no suite measures {', '.join(sorted(unknown))}: choose of {', '.join(sorted(known))}")

    console = Console(width=240 if not sys.stdout.isatty() else None)
    name = device_name(device)
    file_name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json"
    stored = STORED / file_name
    before = from_json(json.loads(stored.read_text())["rows"]) if stored.is_file() else None
    rows: list[Row] = []
    cases = cases_of(device, arguments.operator)
    for number, case in enumerate(cases, start=1):
        print(f"[{number}/{len(cases)}] {case.name}", file=sys.stderr, flush=True)
        rows += rows_of(case, device, SECONDS_QUICK if arguments.quick else SECONDS, not arguments.no_compiled)
        if arguments.out is not None:  # after each: what kills this process costs one case
            write(arguments.out / file_name, name, rows)
    console.print(as_table(rows, f"{name}; torch {torch.__version__}"))
    if device.type == "cuda" and liger is None:
        console.print("Liger-Kernel is not installed: pip install liger-kernel adds it to the rivals.")
    if device.type == "cpu" and dali is None:
        console.print("NVIDIA DALI is not installed: pip install 'tfkd-fast[dali]' adds it to the rivals.")

    if arguments.out is not None:
        console.print(f"Written to {arguments.out / file_name}.")
    if before is None:
        console.print(f"No stored results of {name} to compare with.")
        return 0
    worse = regressions(rows, before)
    for sentence in worse:
        console.print(f"slower: {sentence}")
    console.print(
        f"{len(worse)} of {sum(is_ours(row.variant) for row in rows)} rows are slower than the stored results."
    )
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
