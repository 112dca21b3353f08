"""What is measured: a network, a method and random images, and the engine at work on them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from tfkd_fast.data import Dataset, DataSettings, Loader, LoaderName, make_loader
from tfkd_fast.data.images import ArrayImages
from tfkd_fast.device import Compute
from tfkd_fast.judging.judge import Judge
from tfkd_fast.methods import find_method
from tfkd_fast.methods.base import Method, TeacherFacts
from tfkd_fast.models import FeatureShapes, ModelSettings, build_model, fix_weights
from tfkd_fast.ops import conv_algorithms
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.teachers.teacher import Teacher
from tfkd_fast.training.assemble import Parts, assemble
from tfkd_fast.training.groups import SideBySide

CLASSES = 100
"""Number of classes of the random images."""

MethodName = Literal["ce", "label-smoothing", "kd"]
"""The methods that a loop written by hand is measured beside."""


@dataclass(frozen=True)
class Workload:
    """A network and random images of CIFAR's shape to train it on, which cost as much as real ones."""

    compute: Compute
    """Device and precision."""
    model: ModelSettings
    """The `[model]` table of a recipe."""
    batch_size: int
    """Number of images of a batch."""
    steps: int
    """Number of training steps of an epoch; one measurement is one epoch."""
    method: MethodName = "ce"
    """How the student is taught."""
    teacher: ModelSettings | None = None
    """The network of the teacher; for `kd` only, which needs one."""

    @property
    def images(self) -> int:
        """Number of images of an epoch."""
        return self.steps * self.batch_size

    def build(self) -> nn.Module:
        """Build the network, initialised from seed 0."""
        return self.compute.place(build_model(self.model, CLASSES, 3, seed=0))

    def build_teacher(self) -> nn.Module | None:
        """Build the teacher's network, in eval mode and without gradients; None without a teacher.

        It has learned nothing, which costs as much as one that has.
        """
        if self.teacher is None:
            return None
        network = self.compute.place(build_model(self.teacher, CLASSES, 3, seed=1)).eval().requires_grad_(False)
        fix_weights(network)  # as teachers of runs
        return network

    def image_set(self) -> ArrayImages:
        """Return the random images (3,32,32) with labels of `CLASSES` classes."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (self.images, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return ArrayImages(pixels, torch.randint(CLASSES, (self.images,), generator=generator))

    def dataset(self) -> Dataset:
        """The random images as a data set."""
        images = self.image_set()
        return Dataset(
            "random images",
            list(map(str, range(CLASSES))),
            images.image_shape,
            flip=True,
            read_train=lambda: images,
            read_test=lambda: images,
        )

    def loader(self, name: LoaderName = "resident") -> Loader:
        """Build a loader of the random images, with augmentation."""
        dataset, settings = self.dataset(), DataSettings(batch_size=self.batch_size, loader=name)
        return make_loader(dataset.read_train(), dataset, settings, self.compute.device, self.compute.dtype, seed=0)


def engine_epoch(workload: Workload, candidates: int, way: SideBySide) -> Callable[[], None]:
    """Return a function that trains one epoch by the engine, as `tfkd-fast train` does.

    Every candidate has its own order and augmentation of the data.
    """
    parts = _assemble(workload, candidates, way)
    plan, rates = parts.method.begin_interval(0), [0.01] * workload.steps

    def run() -> None:
        with conv_algorithms.using(parts.convolutions.record.choices):
            parts.epochs.run(plan, 0, rates, average=False)

    return run


def engine_state(workload: Workload) -> Callable[[], dict[str, Any]]:
    """Return a function that returns what a checkpoint holds of a student of the engine, copies of its tensors."""
    parts = _assemble(workload, candidates=1, way="sequential")
    return lambda: {"population": parts.population.state_dict(1), "method": parts.method.state_dict()}


def engine_evaluation(workload: Workload) -> Callable[[], None]:
    """Return a function that judges a student by the images of an epoch, as runs judge it by held-out ones."""
    loader, model = workload.loader(), workload.build()
    judge = Judge(loader, loader, workload.compute, workload.build)
    choices = _assemble(workload, candidates=1, way="sequential").convolutions.record.choices

    def run() -> None:
        with conv_algorithms.using(choices):
            judge.metrics([model])

    return run


def _assemble(workload: Workload, candidates: int, way: SideBySide) -> Parts[Method]:
    """The parts of a run of the engine."""
    data = {"batch_size": workload.batch_size, "loader": "resident", "holdout": 0.0}
    table: dict[str, Any] = {"method": workload.method, "epochs": 1, "population": way, "data": data}
    table["convolutions"] = "measured"  # as in runs of usual length
    if candidates > 1:
        table["selection"] = {"budget": "full", "candidates": candidates}
    teachers = _teachers(workload)
    if teachers:
        table["teachers"] = {"runs": [teacher.facts.name for teacher in teachers]}
    recipe = make_recipe(table, {"model": workload.model.model_dump()})
    build = partial(find_method(recipe.method).build, recipe.options)
    return assemble(recipe, workload.dataset(), workload.compute, build, loaded=teachers)


def _teachers(workload: Workload) -> list[Teacher]:
    network = workload.build_teacher()
    if network is None or workload.teacher is None:
        return []
    facts = TeacherFacts("teacher", workload.teacher.name, tuple(range(CLASSES)), FeatureShapes((), 0))
    return [Teacher(facts, network, checksum="", training_data="", holdout=0.0)]
