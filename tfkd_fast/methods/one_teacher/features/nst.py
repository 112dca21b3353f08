"""NST: the channels of the student are to select the same places as those of the teacher, whichever does."""

import torch.nn.functional as F
from torch import Tensor

from tfkd_fast.methods.base import StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight


class NSTLoss(FeatureLoss):
    """The `[loss]` table, by RepDistiller's command."""

    weight: Weight = 50.0
    """Weight of the discrepancy between the channels of student and teacher in the loss; the label has 1."""


class NSTSettings(FeatureSettings):
    """The tables of neuron selectivity transfer."""

    loss: NSTLoss = NSTLoss()
    """The discrepancy between the channels of student and teacher, and the label beside it."""


class NST(FeatureStudent):
    """D = the sum over pairs of stages of the squared maximum mean discrepancy between the channels of student and
    teacher, each of length 1, under the kernel k(a, b) = (a'b)^2: Huang and Wang, Like What You Like: Knowledge Distill
    via Neuron Selectivity Transfer, 2017, as RepDistiller has it."""

    per_sample = True

    def distance(self, batch: StepBatch) -> Tensor:
        return self.sum_over_pairs(batch, _discrepancy)


def _discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """(B,): mean k(t, t') + mean k(s, s') - 2 mean k(s, t) of maps (B,C,H,W) and (B,D,H,W)."""
    s, t = (F.normalize(each.flatten(2), dim=2) for each in (student, teacher))
    return _mean_kernel(t, t) + _mean_kernel(s, s) - 2.0 * _mean_kernel(s, t)


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.transpose(1, 2)).square().mean((1, 2))
