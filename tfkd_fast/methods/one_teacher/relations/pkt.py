"""PKT: an image is to have its neighbours in the batch with the probabilities that it has for the teacher."""

import torch
from torch import Tensor

from tfkd_fast.methods.base import StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight

EPSILON = 1e-7
"""Number that is added to lengths and probabilities (the authors' code)."""


class PKTLoss(FeatureLoss):
    """The `[loss]` table, by RepDistiller's command."""

    weight: Weight = 30_000.0
    """Weight of the divergence between the probabilities in the loss; the label has 1."""


class PKTSettings(FeatureSettings):
    """The tables of probabilistic knowledge transfer."""

    loss: PKTLoss = PKTLoss()
    """The divergence between the probabilities, and the label beside it."""


class PKT(FeatureStudent):
    """D = the mean over all entries of q log(q / p), p and q (B,B) the cosines of the pooled features of each two
    images, moved to 0 .. 1 and divided by the sum of their row, of student and teacher: Passalis and Tefas, Learning
    Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018, and the authors' code."""

    def distance(self, batch: StepBatch) -> Tensor:
        p = _neighbours(batch.need_features().pooled)
        q = _neighbours(batch.teachers[0].need_features().pooled)
        return (q * ((q + EPSILON) / (p + EPSILON)).log()).mean((1, 2))


def _neighbours(rows: Tensor) -> Tensor:
    """(n,B,B): the probabilities with which each of rows (n,B,D) has the others as neighbours."""
    rows = rows / (torch.linalg.vector_norm(rows, dim=-1, keepdim=True) + EPSILON)
    cosines = (rows @ rows.transpose(1, 2) + 1.0) / 2.0
    return cosines / cosines.sum(-1, keepdim=True)
