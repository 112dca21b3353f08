"""Distillation from several teachers, with a weight of each teacher for every sample."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, Needs, StepBatch, TeacherCount
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.settings import LARGEST, Settings


class AverageLoss(Settings):
    """The `[loss]` table, by the commands of CA-MKD's code (Rorozhl/CA-MKD, scripts/run.sh)."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of teacher and student."""
    ce_weight: float = Field(default=1.0, ge=0, le=LARGEST)
    """Weight of the cross-entropy with the label in the loss."""
    kd_weight: float = Field(default=1.0, ge=0, le=LARGEST)
    """Weight of the averaged divergence from the teachers in the loss."""


class AverageSettings(TaughtSettings):
    """The tables of methods that average several teachers."""

    loss: AverageLoss = AverageLoss()
    """The averaged divergence from the teachers, and the label beside it."""


class Average(TaughtStudent):
    """Distillation by ce_weight CE(y, softmax(z)) + kd_weight sum_m v_m T^2 KL(softmax(t_m/T) || softmax(z/T)), where
    the v_m of a sample sum to 1: a subclass says what they are."""

    per_sample = True

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), teachers=TeacherCount(2, None))

    def __init__(self, settings: Any, context: Context, *, reads_logits_alone: bool = True) -> None:
        """`settings` have a `loss` of `AverageLoss`; `reads_logits_alone` is whether teachers may be refined."""
        loss: AverageLoss = settings.loss
        super().__init__(settings, context, temperature=loss.temperature if reads_logits_alone else None)
        self._settings = loss

    @abstractmethod
    def weights(self, teachers: Tensor, labels: Tensor) -> Tensor | None:
        """The weights v (n,B,M) of teachers with logits (n,M,B,C), for labels (n,B); None for equal weights."""

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings, teachers = self._settings, self.teacher_logits(batch)
        hard, statistics = self.cross_entropy(logits, batch.labels)
        weights = self.weights(teachers, batch.labels)
        soft = ops.distillation_loss(logits, teachers, temperature=settings.temperature, teacher_weights=weights)
        return Loss({"hard": settings.ce_weight * hard, "soft": settings.kd_weight * soft}, statistics)


class EqualAverage(Average):
    """AVER, the usual baseline of several teachers: the mean of their losses (You et al., KDD 2017)."""

    def weights(self, teachers: Tensor, labels: Tensor) -> None:
        return None


class EntropyAverage(Average):
    """EBKD: a teacher counts for less where it is less certain, v_m = (1 - H_m / sum_k H_k) / (M-1), with the entropies
    H of softmax(t) (after Kwon et al., ICASSP 2020, as CA-MKD's code has it).

    That code divides by M instead of M-1; our choice are weights that sum to 1, so that the averages differ in nothing
    but how they weigh.
    """

    def weights(self, teachers: Tensor, labels: Tensor) -> Tensor:
        entropy = torch.special.entr(teachers.softmax(-1)).sum(-1).transpose(-1, -2)  # (n,B,M)
        entropy = entropy.clamp(min=torch.finfo(entropy.dtype).tiny)  # teachers without a doubt are equal
        return (1.0 - entropy / entropy.sum(-1, keepdim=True)) / (entropy.shape[-1] - 1)
