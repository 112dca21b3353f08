"""MMKD as a method: its settings, its loss, and its look-ahead steps."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast.data import Batch
from tfkd_fast.errors import UserError
from tfkd_fast.events import Event, TeachersWeighed
from tfkd_fast.methods.base import (
    Context,
    EpochResult,
    Loss,
    Needs,
    Plan,
    StepBatch,
    TeacherCount,
    TrainingStep,
)
from tfkd_fast.methods.several_teachers.connectors import Connector, ConnectorName
from tfkd_fast.methods.several_teachers.mmkd.buffer import HardBuffer
from tfkd_fast.methods.several_teachers.mmkd.lookahead import meta_gradient
from tfkd_fast.methods.several_teachers.mmkd.matching import MatchedOutputs, distances, divergences
from tfkd_fast.methods.several_teachers.mmkd.weights import GramNorm, TeacherWeights
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.models import logits_and_features
from tfkd_fast.randomness import seeded
from tfkd_fast.settings import LARGEST, Settings


class MMKDLoss(Settings):
    """The `[loss]` table, by the authors' command for VGG-8, which also has Nesterov momentum
    (`optimizer.nesterov=true`)."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of teacher and student."""
    alpha: float = Field(default=1.0, ge=0, le=LARGEST)
    """Weight of the teachers' predictions in the loss; the label has 1."""
    beta: float = Field(default=100.0, ge=0, le=LARGEST)
    """Weight of the teachers' features in the loss; the best value depends on the networks."""
    warmup_epochs: float = Field(default=1.0, ge=0, le=1_000_000)
    """Epochs in which the weight of the features rises from 0 to beta, as the connectors are random at first (our
    choice)."""
    connector: ConnectorName = "deep"
    """Layers that bring the student's map to as many channels as a teacher's has: three convolutions (deep), which the
    authors' command asks for, or one (linear), which their code then computes, as the flag lands in another
    argument."""
    gram_norm: GramNorm = "rows"
    """Normalisation of the Gram matrices by which features are weighed: each row to length 1 (rows, our choice), or no
    normalisation as in the authors' code (none)."""


class MMKDMeta(Settings):
    """The `[meta]` table: how the weights of teachers are learned. The authors' values."""

    period: int = Field(default=5, ge=1, le=1_000_000)
    """Training steps from one update of the weights of teachers to the next."""
    buffer: int = Field(default=256, ge=1, le=100_000)
    """Number of misclassified images that are kept to learn the weights of teachers from, a batch at least."""
    learning_rate: float = Field(default=1e-3, gt=0, le=LARGEST)
    """Learning rate of Adam for the networks that weigh the teachers."""
    weight_decay: float = Field(default=1e-4, ge=0, le=LARGEST)
    """Weight decay of Adam for the networks that weigh the teachers."""


class MMKDSettings(TaughtSettings):
    """The tables that belong to MMKD."""

    loss: MMKDLoss = MMKDLoss()
    """The divergences from the teachers' predictions and features, and the label beside them."""
    meta: MMKDMeta = MMKDMeta()
    """How the weights of the teachers are learned."""


class MMKD(TaughtStudent):
    """MMKD: CE + alpha L_KD + beta L_feat, with weights for each sample and teacher by two networks Theta.

    L_KD = mean_x sum_m omega_m(x) T^2 KL(softmax(z_m/T) || softmax(z/T)) and L_feat = mean_x sum_m v_m(x)
    mean((phi_m(F) - F_m)^2), F the last maps, phi_m connectors that train with the student.

    Theta learns every few steps of training, from the cross-entropy of a batch of hard images after steps that follow
    the teachers alone (`lookahead.meta_gradient`). Our choice: not before the buffer of hard images is full; at the end
    of an epoch only where a period ends, while the authors always do; and a gradient that is not finite is skipped.
    """

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        """No mixed images, because a hard image has one label."""
        return replace(
            super().needs_for(settings),
            teachers=TeacherCount(2, None),
            features=frozenset({"stages"}),
            look_ahead=True,
            mixing=False,
        )

    def __init__(self, settings: MMKDSettings, context: Context) -> None:
        """
        Raises:
            UserError: for a teacher that does not know all classes, and a buffer that is smaller than a batch.
        """
        super().__init__(settings, context)
        self._loss, self._meta = settings.loss, settings.meta
        if self._meta.buffer < context.batch_size:
            raise UserError(
                f"meta.buffer = {self._meta.buffer} is smaller than a batch of {context.batch_size} images: "
                "the teachers' weights are learned from whole batches of it"
            )
        teacher_widths = [facts.shapes.maps[-1][0] for facts in context.teachers]
        width, count = context.need_shapes().maps[-1][0], len(teacher_widths)
        with seeded(context.seed):
            connectors = [Connector(settings.loss.connector, width, wanted) for wanted in teacher_widths]
            weights = TeacherWeights(context.num_classes, count, context.batch_size, settings.loss.gram_norm)
        self.adapters = self._connectors = nn.ModuleList(connectors).to(context.device)
        self.weights = weights.to(context.device)
        """Theta, the networks that weigh the teachers."""
        self._optimizer = torch.optim.Adam(
            self.weights.parameters(), self._meta.learning_rate, weight_decay=self._meta.weight_decay
        )
        self._hard = HardBuffer(self._meta.buffer, context.seed)
        self._batch: Batch | None = None  # of the step that is being taken
        self._steps = 0  # of training, with the one that is being taken
        self._epoch = 0  # for the log, which counts from 1
        self._updates = self._skipped = 0  # of Theta
        self._shares = torch.zeros(2, count, dtype=torch.float64, device=context.device)  # sums over an epoch's samples
        self._samples = 0

    def begin_interval(self, epoch: int) -> Plan:
        self._epoch = epoch + 1
        return super().begin_interval(epoch)

    def before_step(self, step: TrainingStep) -> None:
        self._batch = step.batch
        self._steps += 1
        if self._hard.full and self._steps % self._meta.period == 0:
            self._learn_weights(step)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        hard, statistics = self.cross_entropy(logits, batch.labels)
        outputs = MatchedOutputs.collect(logits, batch.need_features().after_relu[-1], batch.teachers)
        with torch.no_grad():
            shares = self.weights(outputs)
            self._shares += shares.sum((1, 2))
            self._samples += batch.labels.numel()
            if self._batch is not None:  # one candidate sees it
                self._hard.add(self._batch, logits[0].argmax(-1) != self._batch.labels, self._steps)
                self._batch = None
        return Loss({"hard": hard, "teachers": (self._terms(outputs) * shares).sum((0, 2, 3))}, statistics)

    def end_epoch(self, results: Sequence[EpochResult]) -> Iterable[Event]:
        omega, v = (self._shares / max(1, self._samples)).tolist()
        event = TeachersWeighed(
            epoch=self._epoch,
            names=tuple(facts.name for facts in self.context.teachers),
            logit_weights=tuple(omega),
            feature_weights=tuple(v),
            updates=self._updates,
            skipped=self._skipped,
        )
        self._shares.zero_()
        self._samples = 0
        return [event]

    def state_dict(self) -> dict[str, Any]:
        """The state between two epochs. The engine keeps the adapters."""
        return {
            "weights": copy.deepcopy(self.weights.state_dict()),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "hard": self._hard.state_dict(),
            "steps": self._steps,
            "updates": self._updates,
            "skipped": self._skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._hard.load_state_dict(state["hard"], self.context.device)
        self._steps, self._updates, self._skipped = state["steps"], state["updates"], state["skipped"]

    def _terms(self, outputs: MatchedOutputs) -> Tensor:
        """What each sample and teacher adds to alpha L_KD + beta L_feat, unweighed: (2,n,B,M)."""
        of_logits = self._loss.alpha * divergences(outputs, self._loss.temperature)
        of_features = self.beta() * distances(outputs, self._connectors)
        return torch.stack([of_logits, of_features]) / outputs.logits.shape[1]

    def beta(self) -> float:
        """The weight of the features now: it rises in a straight line from 0 to loss.beta over loss.warmup_epochs."""
        epoch = -(-self.context.num_images // self.context.batch_size)
        warmup = max(1.0, self._loss.warmup_epochs * epoch)
        return self._loss.beta * min(1.0, self._steps / warmup)

    def _learn_weights(self, step: TrainingStep) -> None:
        """Update Theta once."""
        batch = self._hard.draw(self.context.batch_size, self._steps)
        images = batch.images.to(step.weights[0].dtype, memory_format=torch.channels_last)
        teachers = step.teach(batch.images)

        def matching() -> tuple[Tensor, Tensor]:
            logits, features = logits_and_features(step.student, self.needs.features, images)
            assert features is not None
            outputs = MatchedOutputs.collect(logits.unsqueeze(0), features.after_relu[-1].unsqueeze(0), teachers)
            return self._terms(outputs), self.weights(outputs)

        def outer() -> Tensor:
            return F.cross_entropy(step.student(images), batch.labels)

        theta = list(self.weights.parameters())
        gradients = meta_gradient(step, matching, outer, theta)
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            for parameter, gradient in zip(theta, gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
            self._updates += 1
        else:
            self._skipped += 1
