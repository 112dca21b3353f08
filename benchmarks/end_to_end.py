"""Whole steps, runs and commands beside what people write or wait for: `python -m benchmarks.end_to_end [GROUP ...]`.

    python -m benchmarks.end_to_end                            # every group
    python -m benchmarks.end_to_end steps --quick              # one group, fewer rounds
    python -m benchmarks.end_to_end --out benchmarks/results   # what later runs on such a processor are compared with

It prints rows of Markdown. With --out they are kept in the file of this processor, in which groups that were not
measured stay as they are. The exit code is 1 where a figure is clearly worse than the stored one of the same processor
and number of threads. Steps and evaluations are measured in turns with the loop written by hand
(`tfkd_fast/throughput`); figures are medians.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import tfkd_fast
from benchmarks import peers
from benchmarks.harness import Case, measured
from benchmarks.problems import draw_labels, draw_logits
from benchmarks.run import STORED, device_name
from tfkd_fast import ops
from tfkd_fast import throughput as bench
from tfkd_fast.device import resolve_compute
from tfkd_fast.models import ModelSettings
from tfkd_fast.strict_json import to_json
from tfkd_fast.throughput.plain_loop import divergence

# Ratios of whole steps vary less than those of single operators: in six runs of one program by 5 % on two cores of a
# virtual machine. Seconds and shares vary more.
LEAST_SHARE_OF_STORED = 0.8


class Row(NamedTuple):
    """One figure."""

    group: str
    what: str
    """What was measured."""
    beside: str
    """What it is compared with, or of what it is a share."""
    figure: float
    spread: float | None
    """Half the distance of the quartiles, as a share of the figure."""
    unit: str
    """"x" for times as fast, where more is better; "%", "s" or "x the time", where less is."""

    @property
    def key(self) -> str:
        return f"{self.group}: {self.what}, {self.beside}"

    @property
    def markdown(self) -> str:
        figure = f"{self.figure:.1f} %" if self.unit == "%" else f"{self.figure:.2f} {self.unit}"
        return f"| {self.what} | {self.beside} | {figure} | {'' if self.spread is None else f'± {self.spread:.0%}'} |"


class Effort(NamedTuple):
    """How long to measure."""

    rounds: int
    """Of steps and evaluations."""
    seconds: float
    """Of a loss."""
    repeats: int
    """Of a command."""
    repdistiller: Path | None = None
    """A clone of RepDistiller; None where there is none."""


FULL, QUICK = Effort(15, 3.0, 5), Effort(3, 0.3, 2)


def workload(model: str, batch_size: int, width: float = 1.0, **more: Any) -> bench.Workload:
    """About 256 images of a network in the precision that runs take; twice that of a narrow one, so that what is done
    once an epoch, in runs once in hundreds of steps, weighs little."""
    compute = resolve_compute("auto", "auto")
    settings = ModelSettings(name=model, width=width)
    images = 256 if width >= 1 else 512
    return bench.Workload(compute, settings, batch_size, max(1, images // batch_size), **more)


def describe(one: bench.Workload) -> str:
    width = "" if one.model.width == 1 else f" x{one.model.width:g}"
    taught = "" if one.teacher is None else f"{one.teacher.name} -> "
    method = "" if one.method in ("ce", "kd") else f", {one.method}"
    return f"{taught}{one.model.name}{width}{method}, batch {one.batch_size}"


def ratios(group: str, what: str, rows: list[bench.Measurement]) -> Iterator[Row]:
    """How many times as fast the first row is as each other."""
    ours, *rivals = rows
    for rival in rivals:
        yield Row(group, what, rival.variant, *bench.ratio(ours, rival), "x")


STEPS = [
    partial(workload, "vgg8", 64),
    partial(workload, "vgg8", 128),
    partial(workload, "resnet20", 64, method="label-smoothing"),
    partial(workload, "vgg8", 64, 0.25),
    partial(workload, "vgg8", 64, 0.5),
    partial(workload, "wrn_16_2", 64),
]


def steps(effort: Effort) -> Iterator[Row]:
    """The training step with labels."""
    for build in STEPS:
        one = build()
        yield from ratios("steps", describe(one), bench.measure_training(one, effort.rounds, compiled=False))


def distillation(effort: Effort) -> Iterator[Row]:
    """The training step with a teacher."""
    for teacher, student in (("vgg13", "vgg8"), ("wrn_40_2", "wrn_16_2")):
        one = workload(student, 64, method="kd", teacher=ModelSettings(name=teacher))
        yield from ratios("distillation", describe(one), bench.measure_training(one, effort.rounds, compiled=False))


def compiled(effort: Effort) -> Iterator[Row]:
    """The training step beside loops that torch compiles, which takes a minute each."""
    for build in STEPS[:3]:
        one = build()
        rows = bench.measure_training(one, effort.rounds, compiled=True)
        yield from ratios("compiled", describe(one), [rows[0], rows[-1]])


def programs(effort: Effort) -> Iterator[Row]:
    """The training step beside other people's programs; those that are not there are named on standard error."""
    taught = bench.Workload(resolve_compute("auto", "auto"), ModelSettings(), 64, 16, "kd", ModelSettings(name="vgg13"))
    for one in (replace(taught, method="ce", teacher=None), taught):
        rows, missing = peers.measure(one, min(effort.rounds, 7), effort.repdistiller)
        ours, _, *others = rows
        yield from ratios("programs", describe(one), [ours, *others])
        for name, reason in missing.items():
            print(f"{name} was not measured: {reason}", file=sys.stderr)


def candidates(effort: Effort) -> Iterator[Row]:
    """Four candidates in one process beside four processes."""
    one = workload("vgg8", 64)
    rows = bench.measure_populations(one, [4], ["streams"], effort.rounds)[4]
    yield from ratios("candidates", f"4 of {describe(one)}", rows)


def evaluation(effort: Effort) -> Iterator[Row]:
    """A student judged by held-out images."""
    for model in ("vgg8", "resnet20", "wrn_16_2"):
        one = workload(model, 128)
        one = bench.Workload(one.compute, one.model, one.batch_size, 8)
        yield from ratios("evaluation", describe(one), bench.measure_evaluation(one, effort.rounds))


def shares(effort: Effort) -> Iterator[Row]:
    """The share of a run that is not spent on training steps, by the run's own summary."""
    runs: dict[str, tuple[str | dict[str, Any], dict[str, Any]]] = {
        "tfkd-mrs, digits, 8 epochs, interval 1": ("digits", {"epochs": 8, "selection": {"interval": 1}}),
        "tfkd-mrs, 6,400 images of 32x32, VGG-8 x0.25, 4 epochs, interval 1": (
            {"method": "tfkd-mrs", "epochs": 4},
            {"model": {"width": 0.25}, "data": {"dataset": "npz", "batch_size": 64}, "selection": {"interval": 1}},
        ),
    }
    with TemporaryDirectory() as folder:
        for number, (what, (recipe, overrides)) in enumerate(runs.items()):
            if overrides.get("data"):
                overrides["data"]["root"] = str(_random_images(Path(folder)))
            summary = tfkd_fast.train(recipe, Path(folder) / f"run{number}", overrides=overrides)
            parts = {part: 100 * summary[f"{part}_seconds"] / summary["seconds"] for part in PARTS}
            yield Row("shares", what, "+".join(PARTS) + " of the run", sum(parts.values()), None, "%")
            for part, share in parts.items():
                yield Row("shares", what, f"{part} of the run", share, None, "%")


PARTS = ("evaluation", "steering", "saving")


def _random_images(folder: Path) -> Path:
    """An .npz file of 6,400 random images of 100 classes to train on and 400 to test on."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 6_400), ("test", 400)):
        arrays[f"{part}_images"] = generator.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 100
    np.savez(folder / "images.npz", **arrays, classes=np.array([f"class {number}" for number in range(100)]))
    return folder / "images.npz"


def start(effort: Effort) -> Iterator[Row]:
    """How long commands take that train nothing."""
    for arguments in (["--help"], ["--version"], ["trian"]):
        seconds = [_wall(*arguments) for _ in range(1 + effort.repeats)][1:]  # the first reads files from the disk
        yield Row("start", f"tfkd-fast {arguments[0]}", "wall", statistics.median(seconds), None, "s")


STUDY = """
seeds = [0, 1, 2]
baseline = "ce"
[base]
epochs = 4
[base.data]
dataset = "digits"
[base.model]
width = 0.25
[rows.ce]
method = "ce"
[rows.label-smoothing]
method = "label-smoothing"
[rows.zipf]
method = "zipf"
[rows.ols]
method = "ols"
"""
"""Twelve runs of about a second of training each."""


def study(effort: Effort) -> Iterator[Row]:
    """A study of short runs, one at a time: how much of its time is training."""
    with TemporaryDirectory() as folder:
        file, out = Path(folder) / "study.toml", Path(folder) / "study"
        file.write_text(STUDY)
        wall = _wall("study", str(file), "--out", str(out), "--jobs", "1")
        training = [json.loads(path.read_text())["training_seconds"] for path in out.glob("runs/*/summary.json")]
    what = f"a study of {len(training)} runs of {statistics.mean(training):.1f} s"
    yield Row("study", what, "wall over the sum of training", wall / sum(training), None, "x the time")


def _wall(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tfkd_fast", *arguments], capture_output=True, check=False)
    return time.perf_counter() - started


def losses(effort: Effort) -> Iterator[Row]:
    """Losses and their gradients as called from Python, beside torch's."""
    for classes in (10, 100, 1_000):
        yield from _losses(classes, effort)


def _losses(classes: int, effort: Effort) -> Iterator[Row]:
    batch, cpu = 128, torch.device("cpu")
    table = draw_logits((classes, classes), torch.float32, cpu, 0).detach().softmax(-1)

    def problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = draw_logits((batch, classes), torch.float32, cpu, seed)
        return logits, draw_labels(batch, classes, cpu, seed), draw_logits((1, batch, classes), torch.float32, cpu, 9)

    def kl_div(z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(z, dim=1), table[y], reduction="batchmean")

    def textbook(z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return 0.9 * divergence(z, t[0]) + 0.1 * F.cross_entropy(z, y)

    pairs: dict[str, tuple[Loss, dict[str, Loss]]] = {
        "soft_target_loss": (
            lambda z, y, t: ops.soft_target_loss(z, y, table),
            {"F.cross_entropy with labels": lambda z, y, t: F.cross_entropy(z, y), "F.kl_div, rows gathered": kl_div},
        ),
        "distillation_loss": (
            lambda z, y, t: ops.distillation_loss(z, t, y, alpha=0.9),
            {"the textbook's KD": textbook},
        ),
    }
    for name, (ours, rivals) in pairs.items():
        by_torch = {f"{rival}, torch.compile": torch.compile(loss) for rival, loss in rivals.items()}
        sets = [problem(seed) for seed in range(8)]
        calls = {variant: _backward(loss, sets) for variant, loss in {name: ours, **rivals, **by_torch}.items()}
        yield from _ratios_of_calls(name, f"{batch}x{classes}", calls, effort)


def _ratios_of_calls(name: str, shape: str, calls: dict[str, Callable[[int], None]], effort: Effort) -> Iterator[Row]:
    case = Case(name, shape, torch.float32, bytes_moved=1 << 20, variants=lambda case, device: calls)
    timings = measured(case, torch.device("cpu"), effort.seconds)
    rows = [bench.Measurement(v, 1 / timings[v].median, timings[v].spread, timings[v].seconds) for v in calls]
    yield from ratios("losses", f"{name}, {shape}, forward and backward", rows)


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _backward(loss: Loss, sets: list[tuple[Tensor, Tensor, Tensor]]) -> Callable[[int], None]:
    def call(i: int) -> None:
        logits, *others = sets[i % len(sets)]
        logits.grad = None
        loss(logits, *others).backward()

    return call


GROUPS: dict[str, Callable[[Effort], Iterable[Row]]] = {
    "steps": steps,
    "distillation": distillation,
    "compiled": compiled,
    "programs": programs,
    "candidates": candidates,
    "evaluation": evaluation,
    "shares": shares,
    "start": start,
    "study": study,
    "losses": losses,
}


def worse(rows: list[Row], stored: list[Row]) -> list[str]:
    """A sentence for each figure that is clearly worse than the stored one."""
    before = {row.key: row.figure for row in stored}
    found = []
    for row in rows:
        old = before.get(row.key)
        if not old or not row.figure:
            continue
        share = row.figure / old if row.unit == "x" else old / row.figure
        if share < LEAST_SHARE_OF_STORED:
            found.append(f"{row.key}: {row.figure:.2f} {row.unit}, and {old:.2f} in the stored results")
    return found


def stored_file(folder: Path, name: str) -> Path:
    """The file of a processor, such as `end-to-end-amd-epyc-family-26-model-2-2-threads.json`."""
    return folder / f"end-to-end-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def read_rows(file: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(file.read_text())["rows"]] if file.is_file() else []


def keep(rows: list[Row], file: Path, name: str) -> None:
    """Write the rows of a group into the file of a processor, in the place of earlier ones."""
    others = [row for row in read_rows(file) if row.group != rows[0].group]
    ordered = sorted(others + rows, key=lambda row: list(GROUPS).index(row.group))
    file.parent.mkdir(parents=True, exist_ok=True)
    results = {"device": name, "torch": torch.__version__, "rows": [row._asdict() for row in ordered]}
    file.write_text(to_json(results, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all, if none is named")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: less exact")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"of steps and evaluations: {FULL.rounds}, 2 or more")
    parser.add_argument("--repdistiller", type=Path, metavar="FOLDER", help="a clone of RepDistiller, for `programs`")
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    options = parser.parse_args()
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"no group is called {', '.join(sorted(unknown))}: choose of {', '.join(GROUPS)}")

    name = device_name(torch.device("cpu"))
    print(f"{name}; torch {torch.__version__}\n\n| what | beside | figure | |\n|---|---|---|---|", flush=True)
    effort = (QUICK if options.quick else FULL)._replace(repdistiller=options.repdistiller)
    if options.rounds is not None:
        effort = effort._replace(rounds=max(2, options.rounds))
    stored, rows = read_rows(stored_file(STORED, name)), list[Row]()
    for group in options.groups or GROUPS:
        of_group = []
        for row in GROUPS[group](effort):
            print(row.markdown, flush=True)
            of_group.append(row)
        rows += of_group
        if options.out is not None:
            keep(of_group, stored_file(options.out, name), name)
    if not stored:
        print(f"No stored results of {name} to compare with.")
    found = worse(rows, stored)
    for sentence in found:
        print(f"worse: {sentence}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
