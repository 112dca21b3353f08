"""The step that is about to be taken, in the hands of a method that tries out others before it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tfkd_fast.data import Batch
from tfkd_fast.methods.base import StepBatch, TeacherOutputs
from tfkd_fast.models import logits_and_features
from tfkd_fast.training.feed import Shown
from tfkd_fast.training.groups import Group, stack_features
from tfkd_fast.training.holdout import HoldoutBatches
from tfkd_fast.training.step import Records, Training, loss_of


class Trial:
    """`methods.base.TrainingStep` over one candidate of a run."""

    def __init__(
        self,
        group: Group,
        shown: Shown,
        taught: tuple[TeacherOutputs, ...],
        records: Records,
        training: Training,
        holdout: HoldoutBatches | None,
    ) -> None:
        """`taught`: what the teachers make of the batch."""
        self._group, self._shown, self._taught = group, shown, taught
        self._training, self._holdout = training, holdout
        (self.student,), (member,) = group.students, group.members
        self.weights = [*group.leaves, *training.adapters.weights]
        self.momenta = [*member.momenta, *training.adapters.momenta]
        self._buffers = [*self.student.buffers(), *training.adapters.buffers]
        self.batch = Batch(*(tensor[0] for tensor in shown.batch))._replace(images=shown.batch.images[0].float())
        self.learning_rate = float(records.learning_rates[0, records.step])
        self.momentum = training.optimizer.momentum
        self.weight_decay = training.optimizer.weight_decay
        self.nesterov = training.optimizer.nesterov

    def loss(self) -> Tensor:
        method = self._training.method
        logits, inner = logits_and_features(method.network(self.student), method.needs_features, self.batch.images)
        batch = StepBatch(
            self._shown.batch.labels,
            self._shown.batch.indices,
            None,
            stack_features([inner]),
            self._taught,
            None,
            self._group.students,
        )
        losses, _ = loss_of(method, logits.unsqueeze(0), batch, self._shown, self._group.candidates)
        return losses[0]

    def holdout(self) -> Batch:
        if self._holdout is None:
            raise RuntimeError("the run holds no images out")
        return next(self._holdout)

    def teach(self, images: Tensor) -> tuple[TeacherOutputs, ...]:
        return self._training.teachers.predict(images.to(self._shown.batch.images.dtype).unsqueeze(0))

    @contextmanager
    def undone(self) -> Iterator[None]:
        tensors = [*self.weights, *self.momenta, *self._buffers]
        before = [tensor.detach().clone() for tensor in tensors]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, saved in zip(tensors, before, strict=True):
                    tensor.copy_(saved)
