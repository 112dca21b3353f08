"""Distillation of standardised logits: what student and teacher match are logits of mean 0 and deviation 1."""

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, StepBatch
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.settings import LARGEST, Settings

EPSILON = 1e-7
"""Number that is added to a standard deviation before it divides (the authors' code)."""


class StandardisedKDLoss(Settings):
    """The `[loss]` table, by the authors' log for VGG-13 and VGG-8 on CIFAR-100; resnet32x4 has a temperature of 2."""

    temperature: float = Field(default=3.0, ge=0.01, le=1_000)
    """Temperature that softens the standardised logits of teacher and student."""
    ce_weight: float = Field(default=0.1, ge=0, le=LARGEST)
    """Weight of the cross-entropy with the label in the loss."""
    kd_weight: float = Field(default=9.0, ge=0, le=LARGEST)
    """Weight of the teacher in the loss."""


class StandardisedKDSettings(TaughtSettings):
    """The tables of distillation with standardised logits."""

    loss: StandardisedKDLoss = StandardisedKDLoss()
    """The divergence from the teacher, and the label beside it."""


class StandardisedKD(TaughtStudent):
    """Distillation by ce_weight CE(y, softmax(z)) + kd_weight T^2 KL(softmax(s(t)/T) || softmax(s(z)/T)), s of
    `standardise`: Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024."""

    per_sample = True

    def __init__(self, settings: StandardisedKDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings = self._settings
        hard, statistics = self.cross_entropy(logits, batch.labels)
        teacher = standardise(self.teacher_logits(batch))
        soft = ops.distillation_loss(standardise(logits), teacher, temperature=settings.temperature)
        return Loss({"soft": settings.kd_weight * soft, "hard": settings.ce_weight * hard}, statistics)


def standardise(logits: Tensor) -> Tensor:
    """Logits (...,C) less their mean over the classes, divided by their standard deviation (of C - 1)."""
    centred = logits - logits.mean(-1, keepdim=True)
    # the norm, unlike a square root, has a gradient where all logits are the same
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / (logits.shape[-1] - 1) ** 0.5
    return centred / (deviation + EPSILON)
