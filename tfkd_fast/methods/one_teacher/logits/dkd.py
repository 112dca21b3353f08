"""Decoupled distillation: the teacher's probability of the label, and its distribution over the other classes."""

import math

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Interval, Loss, Plan, StepBatch
from tfkd_fast.methods.one_teacher.logits.kd_ls import standardise
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.methods.taught.warmup import warmup_factor
from tfkd_fast.settings import LARGEST, Settings


class DKDLoss(Settings):
    """The `[loss]` table, by mdistiller's configuration for VGG-13 and VGG-8 on CIFAR-100 (the authors' own)."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of teacher and student."""
    ce_weight: float = Field(default=1.0, ge=0, le=LARGEST)
    """Weight of the cross-entropy with the label in the loss."""
    alpha: float = Field(default=1.0, ge=0, le=LARGEST)
    """Weight of the divergence for the label against all other classes together."""
    beta: float = Field(default=6.0, ge=0, le=LARGEST)
    """Weight of the divergence among the other classes; the best value depends on the pair of networks."""
    warmup: float = Field(default=20 / 240, ge=0, le=1)
    """Share of the run over which alpha and beta grow from 0 to their values."""
    standardise: bool = False
    """Whether the logits of teacher and student are standardised before they are softened."""


class DKDSettings(TaughtSettings):
    """The tables of decoupled knowledge distillation."""

    loss: DKDLoss = DKDLoss()
    """The decoupled divergences from the teacher, and the label beside them."""


class DKD(TaughtStudent):
    """Decoupled distillation by ce_weight CE(y, softmax(z)) + w (alpha TCKD + beta NCKD): Zhao et al., CVPR 2022,
    equation 7.

    TCKD = T^2 KL of (p_y, 1 - p_y) of the teacher from that of the student, and NCKD = T^2 KL of the probabilities of
    all classes but y, made to sum to 1; both at temperature T. w grows by equal steps to 1, an epoch a step, as in the
    authors' code, see `warmup_factor`.

    With `standardise` the divergences are those of standardised logits: Sun et al., CVPR 2024, see `kd_ls`.
    """

    per_sample = True

    def __init__(self, settings: DKDSettings, context: Context) -> None:
        temperature = None if settings.loss.standardise else settings.loss.temperature
        super().__init__(settings, context, temperature=temperature)
        self._settings = settings.loss
        self.warmup_factor = torch.ones((), device=context.device)
        """() float32: the present factor of the divergences; it rises to 1 over the warm-up, in place."""

    def resume_interval(self, interval: Interval) -> Plan:
        self.warmup_factor.fill_(warmup_factor(interval.first_epoch, self._settings.warmup, self.context.epochs))
        return super().resume_interval(interval)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings, temperature = self._settings, self._settings.temperature
        hard, statistics = self.cross_entropy(logits, batch.labels)
        student_logits, teacher_logits = logits, self.teacher_logits(batch)
        if settings.standardise:
            student_logits, teacher_logits = standardise(student_logits), standardise(teacher_logits)
        binary, others = _decouple(student_logits, batch.labels, temperature)
        teacher_binary, teacher_others = _decouple(teacher_logits, batch.labels.unsqueeze(1), temperature)
        target = ops.distillation_loss(binary, teacher_binary, temperature=temperature)
        non_target = ops.distillation_loss(others, teacher_others, temperature=temperature)
        soft = settings.alpha * target + settings.beta * non_target
        return Loss({"hard": settings.ce_weight * hard, "soft": self.warmup_factor * soft}, statistics)


def exclude_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (...,B,C) whose softmax gives the label (...,B) probability 0, which adds nothing to a divergence, and the
    other classes what is left when they are made to sum to 1."""
    return logits.scatter(-1, labels.unsqueeze(-1), -math.inf)


def _decouple(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits (...,B,2) of the label and of all other classes together, whose softmax at this temperature is (p_y,
    1 - p_y), and the logits (...,B,C) without the label; labels (...,B)."""
    index = labels.unsqueeze(-1)
    others = exclude_label(logits, labels)
    rest = temperature * (others / temperature).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, index), rest], -1), others
