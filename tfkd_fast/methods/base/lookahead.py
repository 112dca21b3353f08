"""The next training step, for methods that try out steps before it is taken."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from tfkd_fast.data import Batch
from tfkd_fast.methods.base.batch import TeacherOutputs


class TrainingStep(Protocol):
    """The next training step of one student, without autocast, for a method that tries out steps before it is taken."""

    student: nn.Module
    """The network, in training mode."""
    weights: list[Tensor]
    """The parameters of the student, then those of the method's adapters: the tensors that the step will change."""
    momenta: list[Tensor]
    """The momentum of each weight."""
    batch: Batch
    """The batch of the step, without an axis of candidates."""
    learning_rate: float
    momentum: float
    weight_decay: float
    nesterov: bool

    def loss(self) -> Tensor:
        """The loss of the step by the present weights, () with gradient, in float32."""

    def descend(self, gradients: Sequence[Tensor]) -> None:
        """Change `weights` and `momenta` as the step itself would by these gradients, one for each weight."""

    def holdout(self) -> Batch:
        """The next batch of held-out images, augmented as the training images are."""

    def teach(self, images: Tensor) -> tuple[TeacherOutputs, ...]:
        """The teachers' outputs for images (B,C,H,W), with n = 1."""

    def rollback(self) -> AbstractContextManager[None]:
        """Context manager that restores weights, momenta and buffers of student and adapters on exit, bit for bit."""
