"""The facts of a run that its method may read, and the images and teachers that it may prepare itself with."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor, nn

from tfkd_fast.data import Batch
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base.batch import TeacherOutputs
from tfkd_fast.models import FeatureShapes
from tfkd_fast.steering.targets import Superclasses


@dataclass(frozen=True)
class TeacherFacts:
    """The facts about a teacher that are known before any of its outputs."""

    name: str
    """The name of the teacher's run folder."""
    model: str
    """The name of the teacher's network."""
    labels: tuple[int, ...]
    """Labels of the student's data set in the order of the teacher's logits: 0 .. C-1, or fewer for a specialist."""
    shapes: FeatureShapes
    """The shapes of the teacher's features."""
    network: nn.Module = field(default_factory=nn.Identity, compare=False, repr=False)
    """The frozen network itself, on the device and in evaluation mode: from the student's images to logits in the order
    of `labels`."""
    classifier: nn.Module = field(default_factory=nn.Identity, compare=False, repr=False)
    """The frozen layer that takes the teacher's pooled features (B, shapes.pooled) to its logits (B,C), in the order of
    `labels`. Gradients flow through it."""


def _build_nothing(seed: int) -> NoReturn:
    raise UserError(
        "this method trains other ends of the network, which are built as the network is, and a loop of one's own does "
        "not build it: train with tfkd-fast train"
    )


@dataclass(frozen=True)
class Context:
    """The facts of a run that its method may read."""

    num_classes: int
    num_images: int
    """The number of training images, without those that are held out."""
    epochs: int
    """The length of the run."""
    seed: int
    device: torch.device
    learning_rate_ratio: Callable[[int], float]
    """The learning rate at the start of a 0-based epoch, divided by the initial one."""
    superclasses: Superclasses | None = None
    classes: tuple[str, ...] = ()
    """The names of the classes, in the order of the labels."""
    model: str = "vgg8"
    """The name of the student's network."""
    shapes: FeatureShapes | None = None
    """The shapes of the student's features; None where the network has none."""
    teachers: tuple[TeacherFacts, ...] = ()
    batch_size: int = 64
    """The batch size of the student's training; the last batch of an epoch may be smaller."""
    phase: Callable[[int], float] = field(default=lambda epoch: 0.0, compare=False, repr=False)
    """How far the run is by its learning rates at the start of a 0-based epoch, 0..1: the moment of a one-cycle run, as
    a share of it, by which as great a share of its learning rates has passed. 0 where the rates are not known."""
    build_student: Callable[[int], nn.Module] = field(default=_build_nothing, compare=False, repr=False)
    """Builds an untrained network like the student's from a seed, on the device. Raises UserError in a loop of one's
    own."""

    def need_shapes(self) -> FeatureShapes:
        """The shapes of the student's features, for a method that cannot do without them.

        Raises:
            ValueError: for a context that was built without them.
            UserError: for a network of others whose features the method did not ask for, so that nobody knows them.
        """
        if self.shapes is None:
            raise ValueError("this method reads features of the student: give the context their shapes")
        if not self.shapes.maps:
            raise UserError(f"this method runs the stages of a network of tfkd_fast, and {self.model} is none")
        return self.shapes


@dataclass(frozen=True)
class Material:
    """Images and teachers with which a method may prepare itself before the first epoch. Every 0-based epoch augments
    images anew."""

    fit: Callable[[int], Iterable[Batch]]
    """The training images of an epoch, batch by batch."""
    unseen: Callable[[int], Iterable[Batch]] | None
    """Those training images that a teacher held out from its own training; None where one held out none."""
    teach: Callable[[Tensor], tuple[TeacherOutputs, ...]]
    """The teachers' outputs for images (B,C,H,W), with n = 1."""
    held_out: Tensor | None = None
    """(M, num_images) bool: which of the training images each teacher held out; None: every teacher all of `unseen`."""
