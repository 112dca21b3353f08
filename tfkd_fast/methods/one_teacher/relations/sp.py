"""SP: images that are similar to the teacher are to be similar to the student."""

import torch.nn.functional as F
from torch import Tensor

from tfkd_fast.methods.base import StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight
from tfkd_fast.methods.taught.maps import inner_products


class SPLoss(FeatureLoss):
    """The `[loss]` table, by RepDistiller's command."""

    weight: Weight = 3000.0
    """Weight of the distance between the similarities in the loss; the label has 1."""


class SPSettings(FeatureSettings):
    """The tables of similarity-preserving distillation."""

    loss: SPLoss = SPLoss()
    """The distance between the similarities, and the label beside it."""


class SP(FeatureStudent):
    """D = ||G_t - G_s||^2 / B^2, G the inner products of the last maps after ReLU of each two images, whose rows have
    length 1: Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, equation 4."""

    def distance(self, batch: StepBatch) -> Tensor:
        student, teacher = batch.need_features(), batch.teachers[0].need_features()
        of_teacher, of_student = (
            F.normalize(inner_products(features.after_relu[-1]), dim=-1) for features in (teacher, student)
        )
        difference = of_teacher - of_student
        return difference.square().mean((1, 2))
