"""Where the time of a training step goes, before and after: in the loop written by hand, and in the engine.

    python -m benchmarks.step_profile                            # VGG-8, WRN-16-2 and ResNet-20
    python -m benchmarks.step_profile --out benchmarks/results   # kept for docs/speed.md

The time of a step is a median without a profiler. The times of operators are medians of what torch's profiler counts
for them alone, without what they call. What is between operators is the rest: Python, the dispatcher and autograd.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.end_to_end import describe, workload
from benchmarks.run import device_name
from tfkd_fast.device import determinism
from tfkd_fast.strict_json import to_json
from tfkd_fast.throughput.by_hand import careful_epoch
from tfkd_fast.throughput.workload import engine_epoch

KINDS = {
    "convolutions": r"conv|tfkd_fast::(direct|winograd|bias_gradient)",
    "batch norm, ReLU, pooling": r"batch_norm|clamp_min|threshold|max_pool|norm_relu_pool",
    "sums of maps and gradients": r"aten::add_?$",
    "copies and conversions": r"aten::copy_$",
    "update": r"sgd|_foreach",
    "other operators": r"aten::|tfkd_fast::",
}
"""What is counted together: the first whose pattern is in the name of an operator."""
BETWEEN = "between operators"
NETWORKS, BATCH_SIZE = ("vgg8", "wrn_16_2", "resnet20"), 64
WARM_UP, ROUNDS, PROFILES = 2, 9, 5


class Profile(NamedTuple):
    """Milliseconds of a training step."""

    step: float
    """Of a whole step."""
    kinds: dict[str, float]
    """Of each of `KINDS`, and of what is between operators."""


class Comparison(NamedTuple):
    """A network by hand and by the engine."""

    what: str
    by_hand: Profile
    ours: Profile


def kind_of(operator: str) -> str | None:
    """The kind of an operator by its name; None for what is not one, such as nodes of autograd."""
    if not operator.startswith(("aten::", "tfkd_fast::")):
        return None
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, operator))


def profiled(epoch: Callable[[], None], steps: int) -> dict[str, float]:
    """Milliseconds a step by kind of operator."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        epoch()
    kinds = dict.fromkeys(KINDS, 0.0)
    for event in recorded.key_averages():
        kind = kind_of(event.key)
        if kind is not None:
            kinds[kind] += event.self_cpu_time_total / 1e3 / steps
    return kinds


def compared(model: str, rounds: int = ROUNDS) -> Comparison:
    """Measure a network in turns, then profile both."""
    one = workload(model, BATCH_SIZE)
    epochs = {"by_hand": careful_epoch(one), "ours": engine_epoch(one, 1, "sequential")}
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    with determinism(False):  # as a run has it
        for turn in range(WARM_UP + rounds):
            for name, epoch in epochs.items():
                started = time.perf_counter()
                epoch()
                if turn >= WARM_UP:
                    seconds[name].append(time.perf_counter() - started)
        turns = [{name: profiled(epoch, one.steps) for name, epoch in epochs.items()} for _ in range(PROFILES)]
    profiles = {}
    for name in epochs:
        step = 1e3 * statistics.median(seconds[name]) / one.steps
        kinds = {kind: statistics.median(turn[name][kind] for turn in turns) for kind in KINDS}
        profiles[name] = Profile(step, {**kinds, BETWEEN: max(0.0, step - sum(kinds.values()))})
    return Comparison(describe(one), **profiles)


def markdown(comparisons: Iterable[Comparison]) -> str:
    """A table with a column for each network, `by hand -> ours` in milliseconds."""
    columns = list(comparisons)
    lines = [f"| ms a step | {' | '.join(one.what for one in columns)} |", f"|---{'|---' * len(columns)}|"]
    for kind in (*KINDS, BETWEEN):
        cells = [f"{one.by_hand.kinds[kind]:.1f} → {one.ours.kinds[kind]:.1f}" for one in columns]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    totals = [f"{one.by_hand.step:.1f} → {one.ours.step:.1f}" for one in columns]
    return "\n".join([*lines, f"| the step | {' | '.join(totals)} |"])


def from_json(comparisons: list[dict[str, Any]]) -> list[Comparison]:
    return [Comparison(one["what"], Profile(**one["by_hand"]), Profile(**one["ours"])) for one in comparisons]


def stored_file(folder: Path, name: str) -> Path:
    """The file of a processor, such as `profile-amd-epyc-family-26-model-2-2-threads.json`."""
    return folder / f"profile-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    options = parser.parse_args()
    name = device_name(torch.device("cpu"))
    print(f"{name}; torch {torch.__version__}\n", flush=True)
    comparisons = [compared(model) for model in NETWORKS]
    print(markdown(comparisons))
    if options.out is not None:
        rows = [{"what": one.what, "by_hand": one.by_hand._asdict(), "ours": one.ours._asdict()} for one in comparisons]
        options.out.mkdir(parents=True, exist_ok=True)
        results = {"device": name, "torch": torch.__version__, "comparisons": rows}
        stored_file(options.out, name).write_text(to_json(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
