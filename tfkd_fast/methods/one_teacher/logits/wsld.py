"""WSLD: an image counts for less where the student knows its label better than the teacher does."""

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, StepBatch
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.settings import LARGEST, Settings

EPSILON = 1e-7
"""Number that is added to the teacher's cross-entropy before it divides (the authors' code)."""


class WSLDLoss(Settings):
    """The `[loss]` table, by the paper for CIFAR-100; the authors' code for ImageNet has temperature 2 and alpha
    2.5."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of teacher and student."""
    alpha: float = Field(default=2.25, ge=0, le=LARGEST)
    """Weight of the teacher in the loss; the label has 1."""


class WSLDSettings(TaughtSettings):
    """The tables of weighted soft labels."""

    loss: WSLDLoss = WSLDLoss()
    """The weighted divergence from the teacher, and the label beside it."""


class WSLD(TaughtStudent):
    """CE(y, p) + alpha mean_b w_b T^2 KL(t_b || p_b) of softened predictions, with the weight of each image w = 1 -
    exp(-CE(y, p) / CE(y, t)), constant, of predictions that are not softened: Zhou et al., Rethinking Soft Labels for
    Knowledge Distillation, ICLR 2021.

    The divergence stands for the cross-entropy of the authors' code, which is larger by the entropy of the teacher, in
    which the student has no part: the gradient is the same.
    """

    per_sample = True

    def __init__(self, settings: WSLDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings, labels = self._settings, batch.labels
        hard, statistics = ops.soft_target_loss_with_stats(logits, labels, self._one_hot, reduction="none")
        teacher = self.teacher_logits(batch)
        with torch.no_grad():
            of_teacher = ops.soft_target_loss(teacher[:, 0], labels, self._one_hot, reduction="none")
            weights = 1.0 - (-hard / (of_teacher + EPSILON)).exp()
        soft = ops.distillation_loss(logits, teacher, temperature=settings.temperature, reduction="none")
        return Loss({"hard": hard.mean(-1), "soft": settings.alpha * (weights * soft).mean(-1)}, statistics)
