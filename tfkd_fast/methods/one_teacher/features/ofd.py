"""OFD: what the teacher's neurons say before ReLU is to be matched where it is positive, and else to stay below a
margin."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tfkd_fast.events import Event
from tfkd_fast.methods.base import Context, Material, Needs, StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight
from tfkd_fast.methods.taught.maps import pool_to, stage_pairs
from tfkd_fast.methods.taught.student import TaughtSettings
from tfkd_fast.models.layers import BatchNorm, Conv, initialise_convolutions
from tfkd_fast.randomness import seeded


class OFDLoss(FeatureLoss):
    """The `[loss]` table, by mdistiller's configuration."""

    weight: Weight = 1e-3
    """Weight of the distance, a sum over all neurons, in the loss; the label has 1."""


class OFDSettings(FeatureSettings):
    """The tables of the overhaul of feature distillation."""

    loss: OFDLoss = OFDLoss()
    """The distance before ReLU, and the label beside it."""


class OFD(FeatureStudent):
    """D = the sum over pairs of stages k = 1 .. K of 2^(k-K) times the sum over neurons of the partial squared distance
    of maps before ReLU, the student's behind a convolution 1x1 and batch norm: Heo et al., A Comprehensive Overhaul of
    Feature Distillation, ICCV 2019, as mdistiller has it. Where one network has more stages, its
    first ones are left out.

    The margin of a channel is the mean of the teacher's negative responses over the training images, as the paper
    defines it; our choice: they are measured in an epoch before the run, where the code works them out of the batch
    norm before a ReLU, which a residual network adds to.
    """

    per_sample = True

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), material=True)

    def __init__(self, settings: OFDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.pairs = stage_pairs(context, from_last=True)
        student, teacher = context.need_shapes().maps, context.teachers[0].shapes.maps
        with seeded(context.seed):
            connectors = nn.ModuleList(
                nn.Sequential(Conv(student[own][0], teacher[other][0], kernel=1), BatchNorm(teacher[other][0]))
                for own, other in self.pairs
            )
            initialise_convolutions(connectors)
        self.adapters = self._connectors = connectors.to(context.device)
        self.margins = [torch.zeros(teacher[other][0], 1, 1, device=context.device) for _, other in self.pairs]
        """The margin (D,1,1) of every channel of the teacher's maps, for each pair of stages."""

    def prepare(self, material: Material) -> Iterable[Event]:
        """Measure the margins over an epoch of training images; a channel without a negative response has 0."""
        sums = [torch.zeros_like(margin, dtype=torch.float64) for margin in self.margins]
        counts = [torch.zeros_like(each) for each in sums]
        for batch in material.fit(0):
            maps = material.teach(batch.images)[0].need_features().before_relu
            for total, count, (_, stage) in zip(sums, counts, self.pairs, strict=True):
                negative = maps[stage][0].clamp(max=0.0).double()
                total += negative.sum((0, 2, 3)).view_as(total)
                count += (negative < 0).sum((0, 2, 3)).view_as(count)
        for margin, total, count in zip(self.margins, sums, counts, strict=True):
            margin.copy_(total / count.clamp(min=1.0))
        return ()

    def distance(self, batch: StepBatch) -> Tensor:
        student, teacher = batch.need_features().before_relu, batch.teachers[0].need_features().before_relu
        total = batch.need_features().pooled.new_zeros(batch.labels.shape[:1])
        for number, (own, other) in enumerate(self.pairs):
            maps = batch.adapt(self._connectors[number], student[own]).flatten(0, 1)
            wanted = pool_to(teacher[other].flatten(0, 1), (maps.shape[-2], maps.shape[-1]))
            distances = partial_distance(maps, wanted, self.margins[number])
            weight = 2.0 ** (number + 1 - len(self.pairs))
            total = total + weight * distances.unflatten(0, batch.labels.shape).mean(1)
        return total

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"margins": [margin.clone() for margin in self.margins]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for margin, saved in zip(self.margins, state["margins"], strict=True):
            margin.copy_(saved)


def partial_distance(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """The squared distance (B,) of maps (B,C,H,W) over the neurons at which the teacher is positive, or the student
    above both it and the margin (C,1,1): there the teacher's response counts, but the margin where that is larger.

    Source: feat_loss of mdistiller's OFD.
    """
    wanted = torch.maximum(teacher, margin)
    counted = (teacher > 0) | (student > wanted)
    return torch.where(counted, student - wanted, 0.0).square().flatten(1).sum(1)
