"""Teachers: networks of finished runs, and others with their weights, which see the images that students train on."""

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tfkd_fast.data import Dataset, DataSettings, Loader
from tfkd_fast.data.split import holdout_indices
from tfkd_fast.device import Compute, Result
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.files import read_bytes
from tfkd_fast.methods import find_method
from tfkd_fast.methods.base import TeacherFacts, TeacherOutputs
from tfkd_fast.methods.base.teacher_table import NetworkTeacher
from tfkd_fast.models import (
    FeatureName,
    FeatureShapes,
    blank_images,
    build_model,
    classifier_of,
    feature_shapes,
    fix_weights,
    logits_and_features,
    logits_of_noise,
    unchanged,
)
from tfkd_fast.plugins import in_one_sentence
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.runs.student import read_student
from tfkd_fast.teachers.adjusted import Reordered, Resized, Restandardised, is_own
from tfkd_fast.teachers.weights import load_weights, named_as_in, published, read_weights


@dataclass(frozen=True)
class Teacher:
    """A trained and frozen network."""

    facts: TeacherFacts
    """What methods know of the teacher."""
    network: nn.Module
    """The network on the device, in eval mode: from the student's images to logits in the order of `facts.labels`."""
    checksum: str
    """SHA-256 of the file of its run, or of the weights themselves, in hexadecimal."""
    training_data: str
    """Fingerprint of the training images of its run, including held-out ones, see `Dataset.fingerprint`; empty where
    they are not known."""
    holdout: float
    """Share of these images that the network was not trained on."""
    fold: int = 0
    """Number of the part of this share that was held out, see `split_holdout`."""
    named: bool = True
    """Whether its classes are known by name; otherwise they are taken for those of the data set in their order."""


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
            _compiled(partial(logits_and_features, teacher.network, features), teacher, compute, batch_size)
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


def _compiled(
    forward: Callable[[Tensor], Result], teacher: Teacher, compute: Compute, batch_size: int
) -> Callable[[Tensor], Result]:
    """The forward pass of a teacher, compiled where the run compiles and the network is of this package."""
    return compute.compile_network(forward, batch_size) if is_own(teacher.network) else forward


def in_float32(outputs: TeacherOutputs) -> TeacherOutputs:
    """Return outputs with their features in float32, as losses read them."""
    return outputs._replace(features=outputs.features and outputs.features.in_float32())


def load_teachers(recipe: Recipe, dataset: Dataset, compute: Compute) -> list[Teacher]:
    """Load the teachers that a recipe names, in its order; see `load_teacher` and `load_network`.

    Two teachers that have the same weights are two teachers all the same, and a `Notice` says so.

    Raises:
        UserError: also for a run that is named twice, under whatever path, which would count twice.
    """
    runs = [Path(run) for run in recipe.teachers.runs]
    for run, again in combinations(runs, 2):
        if run.resolve() == again.resolve():
            raise UserError(f"the teachers {run} and {again} are one run: name it once")
    reads = bool(find_method(recipe.method).needs(recipe.options).features)
    teachers = [load_teacher(run, dataset, compute, reads=reads) for run in runs]
    teachers += [load_network(settings, dataset, compute, reads=reads) for settings in recipe.teachers.networks]
    names = [*map(str, runs), *(teacher.facts.name for teacher in teachers[len(runs) :])]
    for (name, one), (again_name, other) in combinations(zip(names, teachers, strict=True), 2):
        if _have_the_same_weights(one.network, other.network):
            warnings.warn(
                Notice(f"the teachers {name} and {again_name} have the same weights, which count twice"), stacklevel=2
            )
    return teachers


def _have_the_same_weights(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def load_teacher(run_dir: Path, dataset: Dataset, compute: Compute, *, reads: bool = True) -> Teacher:
    """Load the student of a finished run as a teacher.

    Args:
        run_dir: the folder of the run.
        dataset: the data set of the student that it will teach.
        compute: device and precision.
        reads: whether its features are read; those of a network of others are not looked for otherwise.

    Raises:
        UserError: the folder holds no finished run, or the network is for other classes or other channels.
    """
    folder = RunFolder(run_dir)
    folder.require_run()
    path = folder.student
    header, network = read_student(path)
    source = Source(f"teacher {run_dir}", header.classes, header.mean, header.std, header.image_shape)
    network, labels = _fitted(network, source, dataset)
    checksum = hashlib.sha256(read_bytes(path, "the student", "restore it")).hexdigest()
    facts = _facts(run_dir.resolve().name, header.name, network, labels, dataset, compute, reads=reads)
    return Teacher(facts, facts.network, checksum, header.training_data, header.holdout, header.fold)


def load_network(settings: NetworkTeacher, dataset: Dataset, compute: Compute, *, reads: bool = True) -> Teacher:
    """Load a network with weights from elsewhere as a teacher; see `load_teacher` for the other arguments.

    Args:
        settings: the network, its weights, and what they were trained on.

    Raises:
        UserError: the weights cannot be read or fetched, or are those of another network, or of other classes.
    """
    channels, height, width = dataset.image_shape
    name = settings.name if settings.weights is None else f"{settings.name}@{Path(settings.weights).name}"
    classes, mean, std = settings.classes, settings.mean or dataset.mean, settings.std or dataset.std
    size = (settings.image_size, settings.image_size) if settings.image_size else (height, width)
    if settings.weights is None and settings.name.startswith(("timm/", "torchvision/")):
        found = published(settings.name)
        network, channels = found.network, len(found.mean)
        classes = classes or named_as_in(dataset.classes, found.classes or ())
        mean, std = settings.mean or found.mean, settings.std or found.std
        size = size if settings.image_size else found.size
    elif settings.weights is None and not settings.name.startswith("python/"):
        raise UserError(f"teacher {name} has no weights: name a file of them, as in --teacher {name}@FILE")
    else:
        network = build_model(settings, len(classes or dataset.classes), channels, seed=0)
        if settings.weights is not None:
            path = Path(settings.weights)
            load_weights(network, read_weights(path), path, settings.name)
    if len(mean) != channels or len(std) != channels:
        raise UserError(f"teacher {name} takes images of {channels} channels: give mean and std of each of them")
    named, shape = bool(classes), (channels, *size)
    with in_one_sentence(f"teacher {name} fails on images of shape {shape}"):
        logits = logits_of_noise(network, shape)
        count, is_usable = logits.shape[-1], bool(logits.isfinite().all())
    if count != len(classes or dataset.classes):
        known = f"{len(classes)} are named" if named else f"{dataset.name} has {len(dataset.classes)}"
        raise UserError(
            f"teacher {name} knows {count} classes, but {known}: train it on those first, and name that run"
        )
    if not is_usable:
        raise UserError(f"teacher {name} is of no use, because its outputs are not finite")
    own = Source(f"teacher {name}", classes or tuple(dataset.classes), mean, std, shape)
    checksum = _checksum(network)
    network, labels = _fitted(network, own, dataset)
    facts = _facts(name, settings.name, network, labels, dataset, compute, reads=reads)
    return Teacher(facts, facts.network, checksum, training_data="", holdout=0.0, named=named)


class Source(NamedTuple):
    """What a teacher was trained on."""

    whose: str
    """The teacher, for messages."""
    classes: Sequence[str]
    """Names of its classes, in the order of its logits."""
    mean: Sequence[float]
    std: Sequence[float]
    image_shape: tuple[int, int, int]


def _fitted(network: nn.Module, source: Source, dataset: Dataset) -> tuple[nn.Module, tuple[int, ...]]:
    """The network, from the student's images to logits in the order of the student's labels, and these labels."""
    unknown = [name for name in source.classes if name not in dataset.classes]
    if unknown:
        raise UserError(
            f"{source.whose} knows the class {unknown[0]!r}, which is none of {dataset.name}: "
            "name a teacher of the same classes"
        )
    if source.image_shape[0] != dataset.image_shape[0]:
        raise UserError(
            f"{source.whose} was trained on images of shape {source.image_shape}, those of {dataset.name} are "
            f"{dataset.image_shape}: name a teacher on images of as many channels"
        )
    if source.image_shape != dataset.image_shape:
        network = Resized(network, source.image_shape[1:])
    if (tuple(source.mean), tuple(source.std)) != (tuple(dataset.mean), tuple(dataset.std)):
        network = Restandardised(network, dataset.mean, dataset.std, source.mean, source.std)
    labels = [dataset.classes.index(name) for name in source.classes]
    order = sorted(range(len(labels)), key=labels.__getitem__)
    if order != list(range(len(labels))):
        network = Reordered(network, order)
    return network, tuple(sorted(labels))


def _facts(
    name: str,
    model: str,
    network: nn.Module,
    labels: tuple[int, ...],
    dataset: Dataset,
    compute: Compute,
    *,
    reads: bool,
) -> TeacherFacts:
    """The facts of a teacher, whose network is frozen and on the device then."""
    network = compute.place(network.requires_grad_(False)).eval()
    fix_weights(network)
    own = is_own(network)
    if not own:
        images = blank_images(network, dataset.image_shape)
        with unchanged(images, f"teacher {name}"), torch.no_grad():
            network(images)
    if not reads and not own:
        return TeacherFacts(name, model, labels, FeatureShapes((), 0), network)
    shapes = feature_shapes(network, dataset.image_shape)
    return TeacherFacts(name, model, labels, shapes, network, classifier_of(network))


def _checksum(network: nn.Module) -> str:
    """SHA-256 of the weights and buffers of a network, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def refuse_chance(teachers: Sequence[Teacher], loader: Loader, compute: Compute) -> None:
    """Raise UserError for a teacher whose classes are not known by name and that is no better than chance.

    Nothing else tells whether the order of its classes and its images are those that it was trained on. Any other
    teacher at chance is its owner's affair, and a line at the start of the run says so.
    """
    for teacher in teachers:
        if not teacher.named and (figures := judge_teacher(teacher, loader, compute)).is_chance:
            raise UserError(
                f"teacher {teacher.facts.name} is right for {100 * figures.top1:.1f} % of the images, which is chance: "
                "its classes may be in another order, or it was trained on other images; give classes, mean, std and "
                "image_size in [[teachers.networks]]"
            )


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


def unseen_images(teachers: Sequence[Teacher], dataset: Dataset, data: DataSettings) -> Tensor | None:
    """Return which of the student's training images each teacher was not trained on.

    Args:
        teachers: the teachers.
        dataset: the data set of the student.
        data: what the student holds out of it. A smaller share is a subset of a larger one in all runs, and folds of a
            share have no image in common.

    Returns:
        (M,N) bool: for each teacher and training image, whether it is new to the teacher; None if a teacher knows all,
        or if it is not known.
    """
    images = dataset.read_train()
    fit = holdout_indices(images, data.holdout, data.fold)[0] if data.holdout else torch.arange(len(images))
    rows = []
    for teacher in teachers:
        if not teacher.holdout or teacher.training_data != dataset.fingerprint:
            return None
        rows.append(torch.isin(fit, holdout_indices(images, teacher.holdout, teacher.fold)[1]))
    unseen = torch.stack(rows) if rows else torch.zeros(0, len(fit), dtype=torch.bool)
    return unseen if rows and bool(unseen.any(1).all()) else None


def trained_on_holdout(teachers: Sequence[Teacher], dataset: Dataset, data: DataSettings) -> bool | None:
    """Return whether a teacher was trained on images that the student holds out.

    Held-out figures then look better than they are. The result is None if it is not known, because a teacher was
    trained on another data set.
    """
    if not data.holdout or not teachers:
        return False
    if any(teacher.training_data != dataset.fingerprint for teacher in teachers):
        return None
    images = dataset.read_train()
    own = holdout_indices(images, data.holdout, data.fold)[1]

    def saw(teacher: Teacher) -> bool:
        if not teacher.holdout:
            return True
        return not bool(torch.isin(own, holdout_indices(images, teacher.holdout, teacher.fold)[1]).all())

    return any(saw(teacher) for teacher in teachers)
