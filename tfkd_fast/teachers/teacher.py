"""Teachers: networks of finished runs, which look at the images that students train on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfkd_fast.data import Dataset
from tfkd_fast.data.split import split_indices
from tfkd_fast.device import Compute
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import TeacherFacts, TeacherOutputs
from tfkd_fast.models import ModelSettings, feature_shapes, logits_and_features
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.runs.student import load_student, read_student_header


@dataclass(frozen=True)
class Teacher:
    """A trained network that changes no more."""

    facts: TeacherFacts
    network: nn.Module
    """On the device, in evaluation mode; of the student's images to logits in the order of `facts.labels`."""
    checksum: str
    """SHA-256 of the file with its weights."""
    training_data: str
    """Fingerprint of the training images, those held out included, see `Dataset.fingerprint`."""
    holdout: float
    """Share of them that it was not trained on."""


class Teachers:
    """What several teachers make of images; of none, nothing."""

    def __init__(self, teachers: Sequence[Teacher], compute: Compute, batch_size: int, *, features: bool) -> None:
        self.teachers = list(teachers)
        self._compute = compute
        self._forwards = [
            compute.compile_network(partial(logits_and_features, teacher.network, features), batch_size)
            for teacher in teachers
        ]
        self.checksums = [teacher.checksum for teacher in teachers]
        self._wanted: Sequence[int] = range(len(self.teachers))

    def start(self, epoch: int, wanted: Sequence[int] | None = None) -> None:
        """Called before every 0-based epoch; see `Method.wanted_teachers`."""
        self._wanted = range(len(self.teachers)) if wanted is None else wanted

    @torch.no_grad()
    def outputs(self, images: Tensor, indices: Tensor) -> tuple[TeacherOutputs, ...]:
        """What those wanted make of images (n,B,C,H,W), which are those at `indices` (n,B) of the images to fit, as
        they were augmented."""
        return tuple(self._look(images, number) for number in self._wanted)

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[TeacherOutputs, ...]:
        """What all make of any images (n,B,C,H,W)."""
        return tuple(self._look(images, number) for number in range(len(self.teachers)))

    def _look(self, images: Tensor, number: int) -> TeacherOutputs:
        n, size = images.shape[:2]
        with self._compute.autocast():
            logits, features = self._forwards[number](images.flatten(0, 1))
        inner = features and features.map(lambda part: part.unflatten(0, (n, size)))
        return TeacherOutputs(logits.float().unflatten(0, (n, size)), inner)


class Restandardised(nn.Module):
    """A network that was trained on images standardised by other means and deviations than those that it is shown."""

    factor: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, dataset: Dataset, header: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        mean, std, own_mean, own_std = (
            torch.tensor(values).reshape(-1, 1, 1)
            for values in (dataset.mean, dataset.std, header["mean"], header["std"])
        )
        self.register_buffer("factor", std / own_std)
        self.register_buffer("offset", (mean - own_mean) / own_std)

    def forward(self, images: Tensor, return_features: bool = False) -> Any:
        standardised = (images.float() * self.factor + self.offset).to(images.dtype)
        return self.network(standardised, return_features)


class Reordered(nn.Module):
    """A network whose logits come in another order of the same classes."""

    def __init__(self, network: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("order", torch.tensor(order))

    def forward(self, images: Tensor, return_features: bool = False) -> Any:
        if not return_features:
            return self.network(images)[:, self.order]
        logits, features = self.network(images, return_features=True)
        return logits[:, self.order], features


def load_teachers(recipe: Recipe, dataset: Dataset, compute: Compute) -> list[Teacher]:
    """Those that a recipe names, in its order."""
    return [load_teacher(Path(run), dataset, compute) for run in recipe.teachers.runs]


def load_teacher(run_dir: Path, dataset: Dataset, compute: Compute) -> Teacher:
    """The student of a finished run, for images of a data set.

    Raises:
        UserError: for a folder that holds no finished run, and for a network of other classes or images.
    """
    folder = RunFolder(run_dir)
    folder.require_run()
    path = folder.student
    header = read_student_header(path)
    classes, shape = header["classes"], tuple(header["image_shape"])
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
    model = ModelSettings(name=header["name"], width=header["width"])
    network = load_student(path, model, len(classes), shape[0])
    if (tuple(header["mean"]), tuple(header["std"])) != (dataset.mean, dataset.std):
        network = Restandardised(network, dataset, header)
    labels = [dataset.classes.index(name) for name in classes]
    order = sorted(range(len(labels)), key=labels.__getitem__)
    if order != list(range(len(labels))):
        network = Reordered(network, order)
    network = compute.place(network.requires_grad_(False)).eval()
    facts = TeacherFacts(
        run_dir.resolve().name, model.name, tuple(sorted(labels)), feature_shapes(network, dataset.image_shape)
    )
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    return Teacher(facts, network, checksum, header.get("training_data", ""), header.get("holdout", 0.0))


def unseen_indices(teachers: Sequence[Teacher], dataset: Dataset, holdout: float) -> Tensor | None:
    """Indices, among the images to fit, of those that no teacher was trained on; None where that is not known, or none.

    Args:
        holdout: the share that the student holds out itself. The shares of all runs lie within each other.
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
    """Whether a teacher was trained on images that the student holds out, which makes held-out figures look better than
    they are; None where it is not known, because a teacher's data set was another."""
    if not holdout or not teachers:
        return False
    if any(teacher.training_data != dataset.fingerprint for teacher in teachers):
        return None
    return any(teacher.holdout < holdout for teacher in teachers)
