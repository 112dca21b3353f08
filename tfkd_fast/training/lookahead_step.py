"""The next training step of a run, for methods that look ahead."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tfkd_fast.data import Batch
from tfkd_fast.methods.base import StepBatch, TeacherOutputs, TrainingStep
from tfkd_fast.models import Features, logits_and_features
from tfkd_fast.runs.optimizer import SGDSettings
from tfkd_fast.training.feed import StepInput
from tfkd_fast.training.groups import Group, stack_features
from tfkd_fast.training.sgd import sgd_step
from tfkd_fast.training.step import Records, StepSetup, step_loss


class Trial(TrainingStep):
    """`methods.base.TrainingStep` over one candidate of a run."""

    def __init__(
        self,
        group: Group,
        inputs: StepInput,
        teachers: tuple[TeacherOutputs, ...],
        records: Records,
        setup: StepSetup,
    ) -> None:
        """`teachers` are the outputs of the teachers for the batch."""
        self._group, self._inputs, self._teachers = group, inputs, teachers
        self._setup = setup
        (self.student,), (member,) = group.students, group.members
        self.weights = [*group.leaves, *setup.adapters.weights]
        self._state = setup.adapters.beside(member.state)
        self.momenta = self._state["momenta"]
        assert isinstance(setup.optimizer, SGDSettings)  # recipes with another one are refused
        self._optimizer = setup.optimizer
        self._buffers = [*self.student.buffers(), *setup.adapters.buffers]
        self.batch = Batch(*(tensor[0] for tensor in inputs.batch))._replace(images=inputs.batch.images[0].float())
        self._rate = records.learning_rates[0, records.step]
        self.learning_rate = float(self._rate)
        self.momentum = self._optimizer.momentum
        self.weight_decay = self._optimizer.weight_decay
        self.nesterov = self._optimizer.nesterov

    def loss(self) -> Tensor:
        images = self.batch.images.unsqueeze(0)
        logits, features = self._forward(images)
        batch = StepBatch(
            self._inputs.batch.labels,
            self._inputs.batch.indices,
            self._group.candidates.start,
            features=features,
            teachers=self._teachers,
            students=self._group.students,
            images=images,
            forward=self._forward,
            teach=self._predict,
        )
        return step_loss(self._setup.method, logits, batch, self._inputs.mix_partners).total[0]

    def descend(self, gradients: Sequence[Tensor]) -> None:
        sgd_step(self.weights, gradients, self.momenta, self._rate, self._optimizer)

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
        """The outputs of the teachers for images (1,B,C,H,W), in the precision of the run."""
        return self._setup.teachers.predict(images.to(self._inputs.batch.images.dtype))

    @contextmanager
    def rollback(self) -> Iterator[None]:
        tensors = [*self.weights, *self.momenta, *self._buffers]
        before = [tensor.detach().clone() for tensor in tensors]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, saved in zip(tensors, before, strict=True):
                    tensor.copy_(saved)
