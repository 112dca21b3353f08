"""The step that is about to be taken, in the hands of a method that tries out others before it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tfkd_fast.data import Batch
from tfkd_fast.methods.base import StepBatch, TeacherOutputs, TrainingStep
from tfkd_fast.models import Features, logits_and_features
from tfkd_fast.training.feed import Shown
from tfkd_fast.training.groups import Group, stack_features
from tfkd_fast.training.sgd import sgd_step
from tfkd_fast.training.step import Records, StepSetup, step_loss


class Trial(TrainingStep):
    """`methods.base.TrainingStep` over one candidate of a run."""

    def __init__(
        self,
        group: Group,
        shown: Shown,
        teachers: tuple[TeacherOutputs, ...],
        records: Records,
        setup: StepSetup,
    ) -> None:
        """`teachers`: their outputs for the batch."""
        self._group, self._shown, self._teachers = group, shown, teachers
        self._setup = setup
        (self.student,), (member,) = group.students, group.members
        self.weights = [*group.leaves, *setup.adapters.weights]
        self.momenta = [*member.momenta, *setup.adapters.momenta]
        self._buffers = [*self.student.buffers(), *setup.adapters.buffers]
        self.batch = Batch(*(tensor[0] for tensor in shown.batch))._replace(images=shown.batch.images[0].float())
        self._rate = records.learning_rates[0, records.step]
        self.learning_rate = float(self._rate)
        self.momentum = setup.optimizer.momentum
        self.weight_decay = setup.optimizer.weight_decay
        self.nesterov = setup.optimizer.nesterov

    def loss(self) -> Tensor:
        images = self.batch.images.unsqueeze(0)
        logits, features = self._forward(images)
        batch = StepBatch(
            self._shown.batch.labels,
            self._shown.batch.indices,
            self._group.candidates.start,
            features=features,
            teachers=self._teachers,
            students=self._group.students,
            images=images,
            forward=self._forward,
            teach=self._predict,
        )
        return step_loss(self._setup.method, logits, batch, self._shown.mixed).total[0]

    def descend(self, gradients: Sequence[Tensor]) -> None:
        sgd_step(self.weights, gradients, self.momenta, self._rate, self._setup.optimizer)

    def holdout(self) -> Batch:
        if self._setup.holdout is None:
            raise RuntimeError("the run holds no images out")
        return next(self._setup.holdout)

    def teach(self, images: Tensor) -> tuple[TeacherOutputs, ...]:
        return self._predict(images.unsqueeze(0))

    def _forward(self, images: Tensor) -> tuple[Tensor, Features | None]:
        """Run the network on images (1,B,C,H,W), without autocast."""
        names = self._setup.method.needs.features
        logits, features = logits_and_features(self._group.networks[0], names, images[0])
        return logits.unsqueeze(0), stack_features([features])

    def _predict(self, images: Tensor) -> tuple[TeacherOutputs, ...]:
        """What the teachers make of images (1,B,C,H,W), in the precision of the run."""
        return self._setup.teachers.predict(images.to(self._shown.batch.images.dtype))

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
