"""The trained network as a file that anyone can load, with what is needed to use it in the header."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast import tensor_file
from tfkd_fast.data import DataIdentity, Dataset
from tfkd_fast.errors import UserError
from tfkd_fast.files import reading, write_bytes
from tfkd_fast.finiteness import nonfinite_names
from tfkd_fast.models import (
    MODELS,
    ModelSettings,
    Width,
    agree,
    announce_import,
    build_model,
    gives_finite_logits,
    is_of_package,
    logits_of_noise,
    noise,
    refuse_unknown_network,
)
from tfkd_fast.plugins import in_one_sentence
from tfkd_fast.randomness import all_seeded
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.tensor_file import Tensors

STUDENT = "student"
"""The kind of the file."""


class StudentHeader(DataIdentity):
    """What a student's file says of the network, and of the data that it was trained on."""

    name: str
    """Name of the network."""
    width: Width
    """Factor that multiplies the number of channels of every layer."""
    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training images that the network was not trained on, as `data.holdout` has it."""
    fold: int = Field(default=0, ge=0, le=10_000)
    """Number of the part of this share that was held out, as `data.fold` has it."""

    @property
    def model(self) -> ModelSettings:
        """The `[model]` table of the recipe."""
        return ModelSettings(name=self.name, width=self.width)


def student_bytes(model: nn.Module, settings: ModelSettings, dataset: Dataset, holdout: float, fold: int = 0) -> bytes:
    """Weights and buffers of a network; in the header, as JSON, a `StudentHeader`.

    Args:
        model: the network.
        settings: the `[model]` table of its recipe.
        dataset: the data set that it was trained on.
        holdout: share of the training images that it was not trained on.
        fold: which part of this share that is.
    """
    identity = dataset.identity.model_dump()
    header = StudentHeader(**settings.model_dump(), **identity, holdout=holdout, fold=fold)
    weights = {  # copies, because parts of a network may share them, which safetensors refuses
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    return tensor_file.to_bytes(STUDENT, header.model_dump(mode="json"), weights)


def refuse_unsavable(
    model: nn.Module, build: Callable[[], nn.Module], settings: ModelSettings, dataset: Dataset
) -> None:
    """Raise UserError if a network that is written and read would not compute what it did before, or if the training
    of one network changes another.

    Args:
        model: the network, whose weights and buffers change; one of this package is not tried.
        build: builds the network from other initial weights.
        settings: the `[model]` table of its recipe.
        dataset: the data set that it is trained on.
    """
    if is_of_package(model, settings.name):
        return
    whose, shape = f"the network {settings.name}", dataset.image_shape
    other = next((name for name, value in model.state_dict().items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise UserError(
            f"{whose} has in its state_dict() what is no tensor ({other}), and the file of a student holds tensors "
            "alone: make it a buffer, or leave it out"
        )
    with in_one_sentence(f"{whose} cannot be kept in the file of a student"):
        student_bytes(model, settings, dataset, holdout=0.0)
        again = build()
        shared = _shared_tensors(model, again)
        values = {name: tensor.clone() for name, tensor in shared.items()}
        _change(model, shape)
        if changed := [name for name, tensor in shared.items() if not torch.equal(tensor, values[name])]:
            raise UserError(
                f"every {whose.removeprefix('the ')} has the same {changed[0]}, so that to train one would change the "
                "others: let its factory make or copy all that it puts into a network, as with copy.deepcopy"
            )
        again.load_state_dict(model.eval().state_dict())  # in the mode in which students are saved
        before, after = (logits_of_noise(network, shape) for network in (model, again))
    if not agree(before, after):
        raise UserError(
            f"{whose} computes with more than its state_dict() holds, so that the file of a student would not hold all "
            "of it: let what changes in training or is drawn at random be a parameter or a persistent buffer, and let "
            "train() and eval() leave the weights as they are"
        )


def _shared_tensors(model: nn.Module, again: nn.Module) -> Tensors:
    """Weights and buffers of `again` by name that are in the memory of those of `model`."""
    own, others = (chain(network.named_parameters(), network.named_buffers()) for network in (model, again))
    memory = {tensor.untyped_storage().data_ptr() for _, tensor in own if tensor.numel()}
    return {name: tensor.detach() for name, tensor in others if tensor.untyped_storage().data_ptr() in memory}


def _change(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Change what training changes in a network: buffers by a pass in training mode, weights at random."""
    with all_seeded(0):
        model.train()(noise(model, image_shape))
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data.add_(0.01 * torch.randn(weight.shape).to(weight))


def save_student(
    path: Path, model: nn.Module, settings: ModelSettings, dataset: Dataset, holdout: float, fold: int = 0
) -> None:
    """Write a network to `path`, atomically; see `student_bytes` for the other arguments."""
    write_bytes(path, student_bytes(model, settings, dataset, holdout, fold))


def read_student_header(path: Path) -> StudentHeader:
    """Read the header that `student_bytes` wrote beside the weights.

    Raises:
        UserError: the file is missing, damaged or no student, or this process does not know the network.
    """
    header = _read(path)[0]
    refuse_unknown_network(header.name, path)
    return header


def read_student(path: Path) -> tuple[StudentHeader, nn.Module]:
    """Read the header of a file, and the network that it describes in evaluation mode.

    Raises:
        UserError: as `read_student_header` and `load_student`.
    """
    header = read_student_header(path)
    return header, load_student(path, header.model, len(header.classes), header.image_shape).eval()


def load_student(path: Path, settings: ModelSettings, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network of a run folder, with the weights of `path`.

    Where it is built by code of others, a `Notice` says what is imported.

    Raises:
        UserError: if the file is missing, damaged, no student, or one of another network or of one that diverged.
    """
    weights = _read(path)[1]
    announce_import(settings.name, path.parent)
    own = settings.name in MODELS
    with torch.device("meta" if own else "cpu"):  # takes no memory, however large the network is
        model = build_model(settings, num_classes, image_shape[0], seed=0)
    if _shapes(weights) != _shapes(model.state_dict()):
        raise UserError(f"{path} does not hold the weights of a {settings.name} for {num_classes} classes")
    if own:
        model = build_model(settings, num_classes, image_shape[0], seed=0)
    model.load_state_dict(weights)
    names = nonfinite_names(model.state_dict().items())
    if names or not gives_finite_logits(model, image_shape):
        what = f"{names[0]} is" if names else "its outputs are"
        raise UserError(f"the network in {path} is of no use, because {what} not finite: train it again")
    return model


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _read(path: Path) -> tuple[StudentHeader, Tensors]:
    if not path.exists():
        option = RunFolder(path.parent).resume_option
        raise UserError(f"{path} is missing: that run is not finished, go on with {option}")
    with reading(path, "the student", "name the folder of a finished run"):
        header, tensors = tensor_file.read(path, STUDENT)
        return StudentHeader.model_validate(header), tensors
