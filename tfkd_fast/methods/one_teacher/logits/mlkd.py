"""MLKD: predictions are matched image by image, between the images of a batch, and between classes."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, Needs, StepBatch
from tfkd_fast.methods.one_teacher.logits.kd_ls import standardise
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.settings import LARGEST, Settings

OF_BOTH_VIEWS = (3.0, 5.0)
"""Temperatures beside that of the `[loss]` table at which both views are matched (the authors' code)."""
OF_THE_WEAK_VIEW = (2.0, 6.0)
"""Temperatures at which the weak view is matched in place of the strong one, too (the authors' code)."""


class MLKDLoss(Settings):
    """The `[loss]` table, by the authors' configuration for CIFAR-100."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """The first of five temperatures at which predictions are matched; the others are 2, 3, 5 and 6."""
    ce_weight: float = Field(default=0.1, ge=0, le=LARGEST)
    """Weight of the cross-entropy with the label in the loss, for each view."""
    kd_weight: float = Field(default=0.9, ge=0, le=LARGEST)
    """Weight of the teacher in the loss."""
    standardise: bool = False
    """Whether logits are standardised before they are matched image by image."""


class MLKDSettings(TaughtSettings):
    """The tables of multi-level logit distillation."""

    loss: MLKDLoss = MLKDLoss()
    """The distances from the teacher at three levels, and the label beside them."""


class MLKD(TaughtStudent):
    """Distillation of a weak and a strong view of each image by ce_weight (CE + CE') + kd_weight (L_instance + L_batch
    + L_class): Jin, Wang, Lin, Multi-Level Logit Distillation, CVPR 2023, with predictions p (B,C) of the student and q
    of the teacher, all at temperatures T = 2, 3, 4, 5, 6:

    * L_instance: T^2 KL(q || p), once on the weak view, by a factor m, and once on the strong view;
    * L_batch: m ||q q' - p p'||^2 / B on the weak view;
    * L_class: m_c ||q' q - p' p||^2 / C on the weak view.

    As the authors' code computes it: m is the share of images whose largest probability by the teacher is at most the
    median (a half, but for ties and odd batches), and m_c likewise of classes by the sums of their probabilities, since
    masks meet losses that are averages already; at T = 2 and 6 the weak view stands in for the strong one.

    With `standardise`, L_instance is of standardised logits: Sun et al., CVPR 2024, see `kd_ls`.

    Our choice: the strong view is that of `augment_strongly`, where the authors have RandAugment and Cutout; both views
    pass the student at once.
    """

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), companions="strong", companion_gradient=True, mixing=False)

    def __init__(self, settings: MLKDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings, again = self._settings, batch.need_companions()
        hard, statistics = self.cross_entropy(logits, batch.labels)
        hard_again, _ = self.cross_entropy(again.logits, again.labels)
        teacher, teacher_again = batch.teachers[0].logits, batch.teach(again.images)[0].logits
        predictions = teacher.softmax(-1)
        sure_images = share_up_to_median(predictions.amax(-1))
        sure_classes = share_up_to_median(predictions.sum(-2))
        both = (settings.temperature, *OF_BOTH_VIEWS)
        temperatures = (*both, *OF_THE_WEAK_VIEW)

        instances = sure_images * self._divergence(logits, teacher, temperatures)
        instances = instances + self._divergence(again.logits, teacher_again, both)
        instances = instances + self._divergence(logits, teacher, OF_THE_WEAK_VIEW)
        images = torch.zeros_like(hard)
        classes = torch.zeros_like(hard)
        for temperature in temperatures:
            p, q = (logits / temperature).softmax(-1), (teacher / temperature).softmax(-1)
            images = images + _relation_distance(p, q)
            classes = classes + _relation_distance(p.transpose(-1, -2), q.transpose(-1, -2))
        terms = {
            "hard": settings.ce_weight * (hard + hard_again),
            "instances": settings.kd_weight * instances,
            "images": settings.kd_weight * sure_images * images,
            "classes": settings.kd_weight * sure_classes * classes,
        }
        return Loss(terms, statistics)

    def _divergence(self, logits: Tensor, teacher: Tensor, temperatures: Sequence[float]) -> Tensor:
        """Sum over the temperatures of T^2 KL from logits (n,B,C) of the teacher: means (n,)."""
        if self._settings.standardise:
            logits, teacher = standardise(logits), standardise(teacher)
        losses = [ops.distillation_loss(logits, teacher.unsqueeze(1), temperature=each) for each in temperatures]
        return torch.stack(losses).sum(0)


def _relation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance (n,) of the matrices of inner products of N rows each, (n,N,D), divided by N."""
    difference = teacher @ teacher.transpose(-1, -2) - student @ student.transpose(-1, -2)
    return difference.square().sum((-1, -2)) / student.shape[-2]


def share_up_to_median(values: Tensor) -> Tensor:
    """The share (n,) of values (n,N) that are at most their median, the mean of both middle ones for an even N."""
    ranked, count = values.sort(-1).values, values.shape[-1]
    median = (ranked[..., (count - 1) // 2] + ranked[..., count // 2]) / 2.0
    return (values <= median.unsqueeze(-1)).to(values.dtype).mean(-1)
