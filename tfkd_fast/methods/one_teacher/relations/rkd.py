"""RKD: distances between two images and angles between three are to be those of the teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tfkd_fast.methods.base import Context, StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight

EPSILON = 1e-12
"""The smallest square of a distance between two images."""


class RKDLoss(FeatureLoss):
    """The `[loss]` table, by RepDistiller's command and code."""

    weight: Weight = 1.0
    """Weight of both terms together in the loss; the label has 1."""
    distance_weight: Weight = 25.0
    """Weight of the distances between two images."""
    angle_weight: Weight = 50.0
    """Weight of the angles between three images."""


class RKDSettings(FeatureSettings):
    """The tables of relational knowledge distillation."""

    loss: RKDLoss = RKDLoss()
    """The distances and angles, and the label beside them."""


class RKD(FeatureStudent):
    """D = distance_weight mean l(d_s, d_t) + angle_weight mean l(a_s, a_t), l the Huber loss, d the distances between
    the pooled features of two images over their mean, a the cosines of the angles at one image between two others:
    Park, Kim, Lu, Cho, Relational Knowledge Distillation, CVPR 2019, as RepDistiller has it."""

    def __init__(self, settings: RKDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss

    def distance(self, batch: StepBatch) -> Tensor:
        student, teacher = batch.need_features().pooled, batch.teachers[0].need_features().pooled
        distances = F.smooth_l1_loss(_distances(student), _distances(teacher), reduction="none").mean((1, 2))
        angles = F.smooth_l1_loss(_angles(student), _angles(teacher), reduction="none").mean((1, 2, 3))
        return self._settings.distance_weight * distances + self._settings.angle_weight * angles


def _distances(rows: Tensor) -> Tensor:
    """(n,B,B): the distance of each two of rows (n,B,D), over the mean of those that are not 0."""
    squares = rows.square().sum(-1)
    products = rows @ rows.transpose(1, 2)
    distances = (squares.unsqueeze(2) + squares.unsqueeze(1) - 2.0 * products).clamp(min=EPSILON).sqrt()
    distances = distances * (1.0 - torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device))
    counted = (distances > 0).sum((1, 2), keepdim=True).clamp(min=1)
    mean = distances.sum((1, 2), keepdim=True) / counted
    return distances / mean.clamp(min=EPSILON)


def _angles(rows: Tensor) -> Tensor:
    """(n,B,B,B): the cosine of the angle at row i between rows j and k of (n,B,D)."""
    directions = F.normalize(rows.unsqueeze(1) - rows.unsqueeze(2), dim=-1)
    return directions @ directions.transpose(-1, -2)
