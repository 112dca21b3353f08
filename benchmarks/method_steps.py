"""What a training step costs under every method: `python -m benchmarks.method_steps`.

Steps are taken as `tfkd-fast train` takes them: by the engine, on resident images, with teachers that look at every
batch. All methods are measured in turns in one process (`bench.in_turns`), and the figures are medians: ratios those of
the ratios within a turn. Random images cost what real ones cost, and so do networks that have learned nothing.

In the same turns stand plain cross-entropy, and cross-entropy beside teachers whose outputs nobody reads. What a step
takes beyond the latter with as many teachers is the method's own: its loss, and what it asks for beside logits, such as
features, layers of its own, companions or trial steps. Averaged weights, evaluation and decisions are not measured.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from tfkd_fast import bench
from tfkd_fast.bench.training import CLASSES, in_turns
from tfkd_fast.engine.device import resolve_compute
from tfkd_fast.engine.epoch import EpochTrainer
from tfkd_fast.engine.population import Population
from tfkd_fast.engine.schedule import OptimizerSettings
from tfkd_fast.engine.teachers import Teacher, Teachers
from tfkd_fast.errors import UserError
from tfkd_fast.methods import METHODS, Context, MethodEntry, find_method
from tfkd_fast.methods.protocol import Material, TeacherFacts
from tfkd_fast.models import ModelSettings, build_model, feature_shapes

BASELINE = "ce"
IMAGE_SHAPE = (3, 32, 32)
SEVERAL = 3
"""Teachers of a method that takes any number, as in the tables of CA-MKD and MMKD."""
EPOCHS = 3
"""Of the run that a method believes in: too short for a warm-up on the one-hot label."""


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


def measure(
    workload: bench.Workload, teacher: ModelSettings, rounds: int, methods: Iterable[str] = METHODS
) -> tuple[list[Cost], dict[str, str]]:
    """The costs of methods, and of those that cannot be measured the reason by name."""
    variants: dict[str, Variant] = {}
    refused: dict[str, str] = {}
    for name in methods:
        try:
            variants[name] = epoch_of(name, workload, _teachers(workload, teacher, number_of_teachers(METHODS[name])))
        except UserError as error:
            refused[name] = str(error)
        except ValidationError as error:
            refused[name] = error.errors()[0]["msg"]
    counts = {name: number_of_teachers(METHODS[name]) for name in variants}
    for count in {0, *counts.values()}:
        variants[_beside(count)] = epoch_of(BASELINE, workload, _teachers(workload, teacher, count))
    rows = in_turns({name: variant.run for name, variant in variants.items()}, workload.images, rounds)
    seconds = {row.variant: [time / variants[row.variant].steps for time in row.seconds] for row in rows}
    return costs(seconds, counts), refused


def costs(seconds: Mapping[str, Sequence[float]], teachers: Mapping[str, int]) -> list[Cost]:
    """From the seconds of a step in each round, of methods and of the baseline beside teachers."""
    found = []
    for name, count in teachers.items():
        own, alone, beside = seconds[name], seconds[_beside(0)], seconds[_beside(count)]
        low, median, high = statistics.quantiles(own, n=4)
        found.append(
            Cost(
                name,
                count,
                1e3 * median,
                (high - low) / 2 / median,
                statistics.median(time / other for time, other in zip(own, alone, strict=True)),
                statistics.median(1 - other / time for time, other in zip(own, beside, strict=True)),
                list(own),
            )
        )
    return found


def number_of_teachers(entry: MethodEntry) -> int:
    """With how many a method is measured."""
    fewest, most = entry.build.teachers
    return max(fewest, SEVERAL if most is None else min(most, SEVERAL))


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
    )
    method = entry.build(entry.settings.model_validate(entry.preset), context)
    taught_by = Teachers(teachers, compute, workload.batch_size, features=method.needs_features)
    list(method.prepare(Material(loader.epoch, None, lambda images: taught_by.look(images.unsqueeze(0)))))
    plan = method.begin_interval(0)
    candidates = plan.interval.candidates
    trainer = EpochTrainer(
        Population(workload.build, method.max_candidates, slow=method.slow_decay is not None),
        method,
        loader,
        compute,
        OptimizerSettings(),
        "sequential",
        lambda images: None,
        teachers=taught_by,
        holdout=workload.loader(),
    )
    steps = trainer.steps(plan.labels)
    rates = [[0.01] * steps] * candidates
    return Variant(lambda: trainer.run(candidates, 0, rates, average=False, labels=plan.labels), candidates * steps)


def _beside(teachers: int) -> str:
    """The baseline that so many teachers look on."""
    return f"{BASELINE} beside {teachers} teachers"


def _teachers(workload: bench.Workload, settings: ModelSettings, count: int) -> list[Teacher]:
    return [_teacher(workload, settings, seed) for seed in range(count)]


def _teacher(workload: bench.Workload, settings: ModelSettings, seed: int) -> Teacher:
    network = build_model(settings, CLASSES, IMAGE_SHAPE[0], seed).requires_grad_(False)
    network = workload.compute.place(network).eval()
    facts = TeacherFacts(f"teacher {seed}", settings.name, tuple(range(CLASSES)), feature_shapes(network, IMAGE_SHAPE))
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
    parser.add_argument("--teacher", default="vgg13", help="the network of its teachers; tf-kd-self wants vgg8")
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
