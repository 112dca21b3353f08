"""Teachers: networks of finished runs, which are evaluated on the images that students train on."""

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tfkd_fast.data import DataIdentity, Dataset, Loader
from tfkd_fast.data.split import split_indices
from tfkd_fast.device import Compute
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.files import read_bytes
from tfkd_fast.methods.base import TeacherFacts, TeacherOutputs
from tfkd_fast.models import FeatureName, feature_shapes, fix_weights, logits_and_features
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.runs.student import read_student


@dataclass(frozen=True)
class Teacher:
    """A trained and frozen network."""

    facts: TeacherFacts
    """What methods know of the teacher."""
    network: nn.Module
    """The network on the device, in eval mode: from the student's images to logits in the order of `facts.labels`."""
    checksum: str
    """SHA-256 of the file with its weights, in hexadecimal."""
    training_data: str
    """Fingerprint of the training images of its run, including held-out ones, see `Dataset.fingerprint`."""
    holdout: float
    """Share of these images that the network was not trained on."""


JUDGED_IMAGES, FEWEST_IMAGES = 256, 32
"""The most and the fewest images that a teacher is judged by before a run, to tell it from chance (our choice)."""


class TeacherFigures(NamedTuple):
    """How good a teacher is; both are NaN where there are too few images to tell by."""

    top1: float
    """Accuracy, a fraction."""
    chance: float
    """Accuracy up to which it may know nothing: that of always naming the most frequent class, and twice the standard
    error of it (our choice)."""

    @property
    def is_chance(self) -> bool:
        """Whether the teacher may know nothing."""
        return self.top1 <= self.chance


class Teachers:
    """The teachers of a run, of which there may be none."""

    def __init__(
        self,
        teachers: Sequence[Teacher],
        compute: Compute,
        batch_size: int,
        *,
        features: frozenset[FeatureName] = frozenset(),
    ) -> None:
        """Prepare teachers for batches of images.

        Args:
            teachers: the loaded teachers.
            compute: device and precision, and whether networks are compiled.
            batch_size: number of images of a full batch.
            features: names of the features that outputs include, see `Features`.
        """
        self.teachers = list(teachers)
        self._compute = compute
        self._forwards = [
            compute.compile_network(partial(logits_and_features, teacher.network, features), batch_size)
            for teacher in teachers
        ]
        self.checksums = [teacher.checksum for teacher in teachers]
        self._wanted: Sequence[int] = range(len(self.teachers))

    def start(self, epoch: int, wanted: Sequence[int] | None = None) -> None:
        """Select the teachers of an epoch.

        Args:
            epoch: the epoch, counted from 0.
            wanted: indices of the teachers whose outputs are needed, see `Plan.teachers`; None for all.
        """
        self._wanted = range(len(self.teachers)) if wanted is None else wanted

    @property
    def wanted_names(self) -> list[str]:
        """The names of the teachers of the present epoch, in the order of `outputs`."""
        return [self.teachers[number].facts.name for number in self._wanted]

    @torch.no_grad()
    def outputs(self, images: Tensor, indices: Tensor) -> tuple[TeacherOutputs, ...]:
        """Return the outputs of the wanted teachers for a training batch; features as `TeacherOutputs` has them.

        Args:
            images: (n,B,C,H,W), augmented training images.
            indices: (n,B) int64, their indices among the training images.
        """
        return tuple(in_float32(self.predict_one(images, number)) for number in self._wanted)

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[TeacherOutputs, ...]:
        """Return the outputs of all teachers for any images (n,B,C,H,W)."""
        return tuple(in_float32(self.predict_one(images, number)) for number in range(len(self.teachers)))

    @torch.no_grad()
    def predict_one(self, images: Tensor, number: int) -> TeacherOutputs:
        """Return the outputs of one teacher for any images (n,B,C,H,W), with features in the dtype of the run."""
        n, size = images.shape[:2]
        with self._compute.autocast():
            logits, features = self._forwards[number](images.flatten(0, 1))
        inner = features and features.map(lambda part: part.unflatten(0, (n, size)))
        return TeacherOutputs(logits.float().unflatten(0, (n, size)), inner)


def in_float32(outputs: TeacherOutputs) -> TeacherOutputs:
    """Return outputs with their features in float32, as losses read them."""
    return outputs._replace(features=outputs.features and outputs.features.in_float32())


def classifier_of(network: nn.Module) -> nn.Module:
    """Return the layer that takes the pooled features of a network to its logits.

    Raises:
        TypeError: for a network without one.
    """
    found = network.classifier
    if not isinstance(found, nn.Module):
        raise TypeError(f"{type(network).__name__} has no classifier that is a module")
    return found


class Restandardised(nn.Module):
    """A network that was trained with another normalisation: images are converted from the student's to its own."""

    factor: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, dataset: Dataset, own: DataIdentity) -> None:
        super().__init__()
        self.network = network
        mean, std, own_mean, own_std = (
            torch.tensor(values).reshape(-1, 1, 1) for values in (dataset.mean, dataset.std, own.mean, own.std)
        )
        self.register_buffer("factor", std / own_std)
        self.register_buffer("offset", (mean - own_mean) / own_std)

    @property
    def classifier(self) -> nn.Module:
        """The layer that takes pooled features to the logits of this network."""
        return classifier_of(self.network)

    def forward(self, images: Tensor, return_features: bool = False) -> Any:
        standardised = (images.float() * self.factor + self.offset).to(images.dtype)
        return self.network(standardised, return_features)


class Reordered(nn.Module):
    """A network whose logits are reordered, because it was trained with another order of the same classes."""

    order: Tensor

    def __init__(self, network: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("order", torch.tensor(order))

    @property
    def classifier(self) -> nn.Module:
        """The layer that takes pooled features to the logits of this network."""
        return Reordered(classifier_of(self.network), self.order.tolist()).to(self.order.device).eval()

    def forward(self, images: Tensor, return_features: bool = False) -> Any:
        if not return_features:
            return self.network(images)[..., self.order]
        logits, features = self.network(images, return_features=True)
        return logits[..., self.order], features


def load_teachers(recipe: Recipe, dataset: Dataset, compute: Compute) -> list[Teacher]:
    """Load the teachers that a recipe names, in its order; see `load_teacher`.

    Two runs that ended in the same weights are two teachers all the same, and a `Notice` says so.

    Raises:
        UserError: also for a run that is named twice, under whatever path, which would count twice.
    """
    runs = [Path(run) for run in recipe.teachers.runs]
    for run, again in combinations(runs, 2):
        if run.resolve() == again.resolve():
            raise UserError(f"the teachers {run} and {again} are one run: name it once")
    teachers = [load_teacher(run, dataset, compute) for run in runs]
    for (run, one), (again, other) in combinations(zip(runs, teachers, strict=True), 2):
        if _have_the_same_weights(one.network, other.network):
            warnings.warn(
                Notice(f"the teachers {run} and {again} have the same weights, which count twice"), stacklevel=2
            )
    return teachers


def _have_the_same_weights(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def load_teacher(run_dir: Path, dataset: Dataset, compute: Compute) -> Teacher:
    """Load the student of a finished run as a teacher.

    Args:
        run_dir: the folder of the run.
        dataset: the data set of the student that it will teach.
        compute: device and precision.

    Raises:
        UserError: the folder holds no finished run, or the network is for other classes or another shape of images.
    """
    folder = RunFolder(run_dir)
    folder.require_run()
    path = folder.student
    header, network = read_student(path)
    classes, shape = header.classes, header.image_shape
    unknown = [name for name in classes if name not in dataset.classes]
    if unknown:
        raise UserError(
            f"teacher {run_dir} knows the class {unknown[0]!r}, which is none of {dataset.name}: "
            "name a run on the same classes"
        )
    if shape != dataset.image_shape:
        raise UserError(
            f"teacher {run_dir} was trained on images of shape {shape}, those of {dataset.name} are "
            f"{dataset.image_shape}: name a run on images of that shape"
        )
    if (header.mean, header.std) != (dataset.mean, dataset.std):
        network = Restandardised(network, dataset, header)
    labels = [dataset.classes.index(name) for name in classes]
    order = sorted(range(len(labels)), key=labels.__getitem__)
    if order != list(range(len(labels))):
        network = Reordered(network, order)
    network = compute.place(network.requires_grad_(False)).eval()
    fix_weights(network)
    facts = TeacherFacts(
        run_dir.resolve().name,
        header.name,
        tuple(sorted(labels)),
        feature_shapes(network, dataset.image_shape),
        network,
        classifier_of(network),
    )
    checksum = hashlib.sha256(read_bytes(path, "the student", "restore it")).hexdigest()
    return Teacher(facts, network, checksum, header.training_data, header.holdout)


def judge_teacher(teacher: Teacher, loader: Loader, compute: Compute) -> TeacherFigures:
    """Judge a teacher by at most `JUDGED_IMAGES` images of its classes, drawn from those of a loader as their order is.

    It says how good a teacher is at the cost of a few batches; an accuracy on all images would cost more and say the
    same.
    """
    known = torch.tensor(teacher.facts.labels, device=compute.device)
    own = loader.with_labels(teacher.facts.labels)
    right: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.no_grad(), compute.autocast():
        for batch in own.with_indices(own.order(0)[:JUDGED_IMAGES]).in_order():
            right.append(known[teacher.network(batch.images).argmax(1)] == batch.labels)
            labels.append(batch.labels)
    count = sum(map(len, labels))
    if count < FEWEST_IMAGES:
        return TeacherFigures(math.nan, math.nan)
    most = int(torch.cat(labels).bincount().max()) / count
    return TeacherFigures(int(torch.cat(right).sum()) / count, most + 2 * math.sqrt(most * (1 - most) / count))


def unseen_indices(teachers: Sequence[Teacher], dataset: Dataset, holdout: float) -> Tensor | None:
    """Return the indices, among the student's training images, of those that no teacher was trained on.

    Args:
        teachers: the teachers.
        dataset: the data set of the student.
        holdout: share of images that the student holds out. Smaller shares are subsets of larger ones in all runs.

    Returns:
        (M,) int64, or None if there is no such image or if it is not known.
    """
    images = dataset.read_train()
    labels, places = images.labels, images.places
    unseen = torch.ones(len(labels), dtype=torch.bool)
    for teacher in teachers:
        if not teacher.holdout or teacher.training_data != dataset.fingerprint:
            return None
        unseen[split_indices(labels, teacher.holdout, places=places)[0]] = False
    fit = split_indices(labels, holdout, places=places)[0] if holdout else torch.arange(len(labels))
    found = unseen[fit].nonzero().squeeze(1)
    return found if teachers and len(found) else None


def trained_on_holdout(teachers: Sequence[Teacher], dataset: Dataset, holdout: float) -> bool | None:
    """Return whether a teacher was trained on images that the student holds out.

    Held-out figures then look better than they are. The result is None if it is not known, because a teacher was
    trained on another data set.
    """
    if not holdout or not teachers:
        return False
    if any(teacher.training_data != dataset.fingerprint for teacher in teachers):
        return None
    return any(teacher.holdout < holdout for teacher in teachers)
