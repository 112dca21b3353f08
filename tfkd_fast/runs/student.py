"""The trained network as a file that anyone can load, with what is needed to use it in the header."""

from pathlib import Path

from torch import nn

from tfkd_fast import tensor_file
from tfkd_fast.data import Dataset
from tfkd_fast.errors import UserError
from tfkd_fast.files import reading, write_bytes
from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.settings import Settings
from tfkd_fast.tensor_file import Tensors

STUDENT = "student"
"""The kind of the file."""


class StudentHeader(Settings):
    """What is needed to use a network, beside its weights."""

    name: str
    """Name of the network."""
    width: float
    """Factor that multiplies the number of channels of every layer."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    image_shape: tuple[int, int, int]
    """Channels, height and width of the images."""
    mean: tuple[float, ...]
    """Mean of each channel of the training images, pixel values 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel of the training images, pixel values 0..1."""
    training_data: str = ""
    """Fingerprint of the training images, held-out ones included; empty in files of version 0.1 that do not say."""
    holdout: float = 0.0
    """Share of these images that the network was not trained on."""


def student_bytes(model: nn.Module, settings: ModelSettings, dataset: Dataset, holdout: float) -> bytes:
    """Weights and buffers of a network that was trained on all images of `dataset` but the share `holdout`, with a
    `StudentHeader` as JSON."""
    header = StudentHeader(
        **settings.model_dump(),
        classes=tuple(dataset.classes),
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        training_data=dataset.fingerprint,
        holdout=holdout,
    )
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return tensor_file.to_bytes(STUDENT, header.model_dump(mode="json"), weights)


def save_student(path: Path, model: nn.Module, settings: ModelSettings, dataset: Dataset, holdout: float) -> None:
    """Write a network to `path`, atomically; see `student_bytes` for the other arguments."""
    write_bytes(path, student_bytes(model, settings, dataset, holdout))


def read_student_header(path: Path) -> StudentHeader:
    """Read the header that `student_bytes` wrote beside the weights.

    Raises:
        UserError: if the file is missing, damaged or no student.
    """
    return _read(path)[0]


def load_student(path: Path, settings: ModelSettings, num_classes: int, in_channels: int) -> nn.Module:
    """The network of a run folder, with the weights of `path`.

    Raises:
        UserError: if the file is missing, damaged, no student, or one of another network.
    """
    model = build_model(settings, num_classes, in_channels, seed=0)
    try:
        model.load_state_dict(_read(path)[1])
    except RuntimeError:
        raise UserError(f"{path} does not hold the weights of a {settings.name} for {num_classes} classes") from None
    return model


def _read(path: Path) -> tuple[StudentHeader, Tensors]:
    if not path.exists():
        raise UserError(f"{path} is missing: that run is not finished, go on with --resume {path.parent}")
    with reading(path, "the student", "name the folder of a finished run"):
        header, tensors = tensor_file.read(path, STUDENT)
        return StudentHeader.model_validate(header), tensors
