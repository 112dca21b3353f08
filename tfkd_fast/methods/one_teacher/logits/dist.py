"""DIST: the student's probabilities are to be correlated with the teacher's, and need not equal them."""

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast.methods.base import Context, Loss, StepBatch
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.settings import LARGEST, Settings

EPSILON = 1e-8
"""Number that is added to a product of norms before it divides (the authors' code)."""


class DISTLoss(Settings):
    """The `[loss]` table, by the authors' configuration for CIFAR-100; for ImageNet the temperature is 1."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of teacher and student."""
    beta: float = Field(default=2.0, ge=0, le=LARGEST)
    """Weight of the relations between the classes of an image; the label has 1."""
    gamma: float = Field(default=2.0, ge=0, le=LARGEST)
    """Weight of the relations between the images of a batch in each class; the label has 1."""


class DISTSettings(TaughtSettings):
    """The tables of DIST, correlated predictions."""

    loss: DISTLoss = DISTLoss()
    """The correlations with the teacher, and the label beside them."""


class DIST(TaughtStudent):
    """CE(y, p) + beta T^2 (1 - mean_b r(p_b, q_b)) + gamma T^2 (1 - mean_c r(p^c, q^c)), r Pearson's correlation, p_b
    and q_b the rows and p^c and q^c the columns of the softened predictions (B,C) of student and teacher: Huang, You,
    Wang, Qian, Xu, Knowledge Distillation from a Stronger Teacher, NeurIPS 2022, equations 8 to 10.

    The factor T^2 is that of the authors' code.
    """

    def __init__(self, settings: DISTSettings, context: Context) -> None:
        super().__init__(settings, context, temperature=settings.loss.temperature)
        self._settings = settings.loss

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings, temperature = self._settings, self._settings.temperature
        hard, statistics = self.cross_entropy(logits, batch.labels)
        student = (logits / temperature).softmax(-1)
        teacher = (self.teacher_logits(batch)[:, 0] / temperature).softmax(-1)
        between_classes = 1.0 - correlation(student, teacher).mean(-1)
        between_images = 1.0 - correlation(student.transpose(-1, -2), teacher.transpose(-1, -2)).mean(-1)
        terms = {
            "hard": hard,
            "classes": settings.beta * temperature**2 * between_classes,
            "images": settings.gamma * temperature**2 * between_images,
        }
        return Loss(terms, statistics)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation (...) of rows (...,C) with rows (...,C); 0 for a row whose entries are all the same."""
    first, second = (each - each.mean(-1, keepdim=True) for each in (first, second))
    norms = torch.linalg.vector_norm(first, dim=-1) * torch.linalg.vector_norm(second, dim=-1)
    return (first * second).sum(-1) / (norms + EPSILON)
