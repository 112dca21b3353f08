"""What a training step costs under every method: `python -m benchmarks.method_steps`.

Steps are taken as `tfkd-fast train` takes them: by the engine, on resident images, with teachers that look at every
batch. All methods are measured in turns in one process (`bench.measure_interleaved`), and the figures are medians:
ratios those of the ratios within a turn. Random images cost what real ones cost, and so do networks that have learned
nothing.

In the same turns stand plain cross-entropy, and cross-entropy beside teachers whose outputs nobody reads. What a step
takes beyond the latter with as many teachers is the method's own: its loss, and what it asks for beside logits, such as
features, layers of its own, companions or trial steps. Averaged weights, evaluation and decisions are not measured.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from tfkd_fast import throughput as bench
from tfkd_fast.device import resolve_compute
from tfkd_fast.errors import UserError
from tfkd_fast.methods import METHODS, Context, Method, find_method
from tfkd_fast.methods.base import Material, TeacherFacts
from tfkd_fast.models import ModelSettings, build_model, classifier_of, feature_shapes
from tfkd_fast.runs.optimizer import SGDSettings
from tfkd_fast.runs.precedence import merge
from tfkd_fast.teachers.teacher import Teacher, Teachers
from tfkd_fast.throughput import CLASSES, measure_interleaved
from tfkd_fast.training.epoch import EpochTrainer
from tfkd_fast.training.population import Population

BASELINE = "ce"
IMAGE_SHAPE = (3, 32, 32)
SEVERAL = 3
"""Teachers of a method that takes any number, as in the tables of CA-MKD and MMKD."""
EPOCHS = 3
"""Of the run that a method believes in: too short for a warm-up on the one-hot label."""


OWN: dict[str, dict[str, Any]] = {
    "professor": {"professor": {"epochs": 1}},
    "ft": {"loss": {"paraphraser_epochs": 1}},
}
"""What the recipe of a method has beside its name: the training of a professor or a paraphraser is not measured."""

Taught = tuple[int, str]
"""How many teachers, and of which kind: networks of all classes, specialists, or of the student's own kind."""


class Cost(NamedTuple):
    """Of a step of one candidate."""

    method: str
    teachers: int
    milliseconds: float
    """The median."""
    spread: float
    """Half the distance of the quartiles, as a share of the median."""
    times_baseline: float
    own_share: float
    """Of the step, what plain cross-entropy beside as many teachers does not take."""
    seconds: list[float]
    """Of a step, a round each."""


@dataclass(frozen=True)
class Variant:
    """An epoch under one method."""

    run: Callable[[], object]
    steps: int
    """Of all candidates together."""
    method: Method


def measure(
    workload: bench.Workload, teacher: ModelSettings, rounds: int, methods: Iterable[str] = METHODS
) -> tuple[list[Cost], dict[str, str]]:
    """The costs of methods, and of those that cannot be measured the reason by name."""
    variants: dict[str, Variant] = {}
    refused: dict[str, str] = {}
    for name in methods:
        try:
            variants[name] = epoch_of(name, workload, _teachers(workload, teacher, taught_by(name)))
        except UserError as error:
            refused[name] = str(error)
        except ValidationError as error:
            refused[name] = error.errors()[0]["msg"]
    taught = {name: taught_by(name) for name in variants}
    for teachers in {ALONE, *taught.values()}:
        variants[_beside(teachers)] = epoch_of(BASELINE, workload, _teachers(workload, teacher, teachers))
    rows = measure_interleaved({name: variant.run for name, variant in variants.items()}, workload.images, rounds)
    seconds = {row.variant: [time / variants[row.variant].steps for time in row.seconds] for row in rows}
    return costs(seconds, taught), refused


def costs(seconds: Mapping[str, Sequence[float]], taught: Mapping[str, Taught]) -> list[Cost]:
    """From the seconds of a step in each round, of methods and of the baseline beside teachers."""
    found = []
    for name, teachers in taught.items():
        own, alone, beside = seconds[name], seconds[_beside(ALONE)], seconds[_beside(teachers)]
        low, median, high = statistics.quantiles(own, n=4)
        found.append(
            Cost(
                name,
                teachers[0],
                1e3 * median,
                (high - low) / 2 / median,
                statistics.median(time / other for time, other in zip(own, alone, strict=True)),
                statistics.median(1 - other / time for time, other in zip(own, beside, strict=True)),
                list(own),
            )
        )
    return found


ALONE: Taught = (0, "teachers")


def taught_by(name: str) -> Taught:
    """The teachers that a method is measured with."""
    entry = METHODS[name]
    needs = entry.needs()
    fewest, most = needs.teachers
    count = max(fewest, SEVERAL if most is None else min(most, SEVERAL))
    if needs.specialists:
        return count, "specialists"
    return count, "networks like the student" if name == "tf-kd-self" else "teachers"


def epoch_of(name: str, workload: bench.Workload, teachers: Sequence[Teacher]) -> Variant:
    """An epoch of a method with its own presets and defaults. Raises UserError or ValidationError if it needs more."""
    entry, compute, loader = find_method(name), workload.compute, workload.loader()
    context = Context(
        CLASSES,
        workload.images,
        EPOCHS,
        0,
        compute.device,
        lambda epoch: 1.0,
        classes=tuple(map(str, range(CLASSES))),
        model=workload.model.name,
        shapes=feature_shapes(workload.build(), IMAGE_SHAPE),
        teachers=tuple(teacher.facts for teacher in teachers),
        batch_size=workload.batch_size,
        build_student=lambda seed: workload.build(),
    )
    settings = merge(
        {key: entry.preset[key] for key in entry.preset.keys() & entry.settings.model_fields}, OWN.get(name, {})
    )
    with TemporaryDirectory() as folder:
        if name == "distpro":
            settings["process"] = {"file": str(_searched(workload, teachers, Path(folder)))}
        method = entry.build(entry.settings.model_validate(settings), context)
    looking = Teachers(teachers, compute, workload.batch_size, features=method.needs.features)
    list(method.prepare(Material(loader.epoch, loader.epoch, lambda images: looking.predict(images.unsqueeze(0)))))
    plan = method.begin_interval(EPOCHS - 1)  # in an early grade there is less to do
    trainer = EpochTrainer(
        Population(workload.build, method.needs.candidates, slow=method.needs.slow_decay is not None),
        method,
        loader,
        compute,
        SGDSettings(),
        "sequential",
        lambda images: None,
        teachers=looking,
        holdout=workload.loader(),
    )
    steps = trainer.steps(plan)
    return Variant(
        lambda: trainer.run(plan, 0, [0.01] * steps, average=False), plan.interval.candidates * steps, method
    )


def _searched(workload: bench.Workload, teachers: Sequence[Teacher], folder: Path) -> Path:
    """The process of a search of one epoch."""
    search = epoch_of("distpro-search", workload, teachers)
    search.run()
    for name, content in search.method.files().items():
        (folder / name).write_bytes(content)
    return folder


def _beside(teachers: Taught) -> str:
    """The baseline that such teachers look on."""
    return f"{BASELINE} beside {teachers[0]} {teachers[1]}"


def _teachers(workload: bench.Workload, settings: ModelSettings, teachers: Taught) -> list[Teacher]:
    count, kind = teachers
    labels = torch.arange(CLASSES)
    groups = labels.tensor_split(count) if kind == "specialists" else [labels] * count
    settings = workload.model if kind == "networks like the student" else settings
    return [_teacher(workload, settings, seed, group.tolist()) for seed, group in enumerate(groups)]


def _teacher(workload: bench.Workload, settings: ModelSettings, seed: int, labels: Sequence[int]) -> Teacher:
    network = build_model(settings, len(labels), IMAGE_SHAPE[0], seed).requires_grad_(False)
    network = workload.compute.place(network).eval()
    shapes, classifier = feature_shapes(network, IMAGE_SHAPE), classifier_of(network)
    facts = TeacherFacts(f"teacher {seed}", settings.name, tuple(labels), shapes, network, classifier)
    return Teacher(facts, network, checksum="", training_data="", holdout=0.0)


def show(found: list[Cost], refused: dict[str, str], title: str, console: Console) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("method", "teachers", "ms a step", "±", f"times {BASELINE}", "its own"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for cost in found:
        figures = (f"{cost.milliseconds:.2f}", f"{cost.spread:.0%}", f"{cost.times_baseline:.2f}")
        table.add_row(cost.method, str(cost.teachers), *figures, f"{cost.own_share:.0%}")
    console.print(table)
    for name, reason in refused.items():
        console.print(f"{name} was not measured: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25, help="of the student, VGG-8")
    parser.add_argument("--teacher", default="vgg13", help="the network of its teachers")
    parser.add_argument("--teacher-width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="of one measurement; MMKD looks ahead in each fifth")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each method")
    parser.add_argument("methods", nargs="*", default=list(METHODS), help="all, if none is named")
    options = parser.parse_args()
    try:
        for name in options.methods:
            find_method(name)
    except UserError as error:
        parser.error(str(error))
    compute = resolve_compute("auto", "auto", "auto")
    workload = bench.Workload(compute, ModelSettings(width=options.width), options.batch, options.steps)
    teacher = ModelSettings(name=options.teacher, width=options.teacher_width)
    found, refused = measure(workload, teacher, options.rounds, options.methods)
    on = f"{compute.device_name}, {torch.get_num_threads()} threads · {compute.precision} · batch {options.batch}"
    networks = f"vgg8 of width {options.width:g}, teachers {options.teacher} of width {options.teacher_width:g}"
    show(found, refused, f"{on} · {networks}", Console())


if __name__ == "__main__":
    main()
