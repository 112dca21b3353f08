"""VID: the teacher's maps are to be likely, given the student's."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.methods.base import Context, StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight
from tfkd_fast.methods.taught.maps import pool_to_smaller
from tfkd_fast.randomness import seeded

SMALLEST_VARIANCE, INITIAL_VARIANCE = 1e-5, 5.0
"""The variance that a channel has at least, and the one that it begins with (RepDistiller)."""


class VIDLoss(FeatureLoss):
    """The `[loss]` table, by RepDistiller's command."""

    weight: Weight = 1.0
    """Weight of the teacher's negative log-likelihood in the loss; the label has 1."""


class VIDSettings(FeatureSettings):
    """The tables of variational information distillation."""

    loss: VIDLoss = VIDLoss()
    """The likelihood of the teacher's maps, and the label beside it."""


class Gaussian(nn.Module):
    """A normal distribution of the teacher's map, with a mean by three convolutions 1x1 of the student's map, and a
    variance for each channel that is learned."""

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(channels, wanted, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, 1, bias=False),
        )
        self.scale = nn.Parameter(torch.full((wanted,), math.log(math.expm1(INITIAL_VARIANCE - SMALLEST_VARIANCE))))

    def forward(self, maps: Tensor) -> Tensor:
        """The mean (B,T,H,W) for maps (B,S,H,W)."""
        mean: Tensor = self.mean(maps)
        return mean

    def variance(self) -> Tensor:
        """The variance (T,1,1) of each channel."""
        return (F.softplus(self.scale) + SMALLEST_VARIANCE).view(-1, 1, 1)


class VID(FeatureStudent):
    """D = the sum over pairs of stages of the mean of ((t - mu(s))^2 / v + log v) / 2: Ahn, Hu, Damianou, Lawrence and
    Dai, Variational Information Distillation for Knowledge Transfer, CVPR 2019, as RepDistiller has it."""

    per_sample = True

    def __init__(self, settings: VIDSettings, context: Context) -> None:
        super().__init__(settings, context)
        student, teacher = context.need_shapes().maps, context.teachers[0].shapes.maps
        with seeded(context.seed):
            gaussians = nn.ModuleList(Gaussian(student[own][0], teacher[other][0]) for own, other in self.pairs)
        self.adapters = self._gaussians = gaussians.to(context.device)

    def distance(self, batch: StepBatch) -> Tensor:
        student, teacher = batch.need_features().after_relu, batch.teachers[0].need_features().after_relu
        total = batch.need_features().pooled.new_zeros(batch.labels.shape[:1])
        for (own, other), gaussian in zip(self.pairs, self._gaussians, strict=True):
            assert isinstance(gaussian, Gaussian)
            maps, wanted = pool_to_smaller(student[own].flatten(0, 1), teacher[other].flatten(0, 1))
            mean = batch.adapt(gaussian, maps.unflatten(0, batch.labels.shape))
            variance = gaussian.variance()
            errors = (mean - wanted.unflatten(0, batch.labels.shape)).square() / variance + variance.log()
            total = total + errors.mean((1, 2, 3, 4)) / 2.0
        return total
