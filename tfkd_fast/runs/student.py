"""The trained network as a file that anyone can load, with what is needed to use it in the header."""

from pathlib import Path
from typing import Any

from torch import nn

from tfkd_fast import tensor_file
from tfkd_fast.data import Dataset
from tfkd_fast.errors import UserError
from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.runs.checkpoint import write_atomically
from tfkd_fast.tensor_file import ForeignFile

STUDENT = "student"
"""The kind of the file."""


def student_bytes(model: nn.Module, settings: ModelSettings, dataset: Dataset, holdout: float) -> bytes:
    """Weights and buffers of a network; in the header, as JSON, its settings, classes, input shape and normalisation,
    and which training images it has seen: all of `dataset` but the share `holdout`."""
    header = {
        **settings.model_dump(),
        "classes": list(dataset.classes),
        "image_shape": list(dataset.image_shape),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "training_data": dataset.fingerprint,
        "holdout": holdout,
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return tensor_file.to_bytes(STUDENT, header, weights)


def save_student(path: Path, model: nn.Module, settings: ModelSettings, dataset: Dataset, holdout: float) -> None:
    """Write a network to `path`, atomically; see `student_bytes` for the other arguments."""
    content = student_bytes(model, settings, dataset, holdout)
    write_atomically(path, lambda file: file.write(content))


def read_student_header(path: Path) -> dict[str, Any]:
    """Read the header that `student_bytes` wrote beside the weights.

    Raises:
        UserError: if the file is missing, damaged or no student.
    """
    try:
        return tensor_file.read_header(path, STUDENT)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: that run is not finished, go on with --resume {path.parent}") from None
    except (OSError, ForeignFile):
        raise UserError(f"{path} holds no student of tfkd-fast: name the folder of a finished run") from None


def load_student(path: Path, settings: ModelSettings, num_classes: int, in_channels: int) -> nn.Module:
    """The network of a run folder, with the weights of `path`."""
    model = build_model(settings, num_classes, in_channels, seed=0)
    try:
        model.load_state_dict(tensor_file.read_tensors(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the run is not finished, go on with --resume {path.parent}") from None
    except (ForeignFile, RuntimeError):
        raise UserError(f"{path} does not hold the weights of a {settings.name} for {num_classes} classes") from None
    return model
