"""Connectors: small networks from the student's features to the teacher's, and the distance between features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.methods.distpro.pathways import Pathway, stage_maps
from tfkd_fast.models import FeatureShapes
from tfkd_fast.models.layers import BatchNorm, Conv, average_pool_to, initialise_convolutions, norm_relu_pool
from tfkd_fast.randomness import seeded

MOST_CHANNELS = 512
"""The most channels between the convolutions of a complex connector (the authors' code)."""


class LinearConnector(nn.Module):
    """The transform identity-1x1: a convolution 1x1 and batch norm, on the smaller one of both maps."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.conv = Conv(student_channels, teacher_channels, kernel=1)
        self.norm = BatchNorm(teacher_channels)
        initialise_convolutions(self)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Features (B,S,h,w) as (B,T,*size)."""
        return _enlarge(self.norm(self.conv(_shrink(x, size))), size)


class ComplexConnector(nn.Module):
    """The transform complex, that of the authors' code: three convolutions 3x3, a gate for every position."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        channels = min(MOST_CHANNELS, student_channels, teacher_channels)
        self.conv1 = Conv(student_channels, channels)
        self.norm1 = BatchNorm(channels)
        self.conv2 = Conv(channels, channels)
        self.norm2 = BatchNorm(channels)
        self.conv3 = Conv(channels, teacher_channels)
        self.norm3 = BatchNorm(teacher_channels)
        initialise_convolutions(self)
        self.gate = Conv(channels, 1, kernel=1)  # with torch's own weights, as the authors leave it

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Features (B,S,h,w) as (B,T,*size)."""
        x = norm_relu_pool(self.norm1, self.conv1(_shrink(x, size)))
        x = norm_relu_pool(self.norm2, self.conv2(x * self.gate(x)))
        return self.norm3(self.conv3(_enlarge(x, size)))


def _shrink(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Average a map that is larger than the teacher's, before convolutions whose results would be thrown away (our
    choice; the code has nearest neighbours after them)."""
    return average_pool_to(x, size) if x.shape[-2] > size[0] else x


def _enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="nearest") if x.shape[-2:] != size else x


class Connectors(nn.Module):
    """The connectors of K pathways; their weights are drawn from `seed`, without the global random state."""

    def __init__(self, pathways: Sequence[Pathway], teacher: FeatureShapes, student: FeatureShapes, seed: int) -> None:
        super().__init__()
        kinds = {"identity-1x1": LinearConnector, "complex": ComplexConnector}
        of_student, of_teacher = stage_maps(student), stage_maps(teacher)
        with seeded(seed):
            self.connectors = nn.ModuleList(
                kinds[pathway.transform](of_student[pathway.student_stage][0], of_teacher[pathway.teacher_stage][0])
                for pathway in pathways
            )

    def forward(self, number: int, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a pathway by its number: features (B,S,h,w) and (B,T,H,W) to (B,)."""
        height, width = teacher.shape[-2:]
        return hierarchical_context_loss(self.connectors[number](student, (height, width)), teacher)


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two maps and of what is left of it in coarser ones, for each sample.

    sum_l c_l MSE(pool_l(s), pool_l(t)) / sum_l c_l: the maps as they are with c = 1, then averaged to 4x4, 2x2 and 1x1
    where that is less than their height, each with half the c of the one before.

    Source: HCL of Chen et al., CVPR 2021 (ReviewKD), as the code of DistPro has it. Averages are linear, so here the
    difference is averaged, once for both.

    Args:
        student, teacher: (B,C,H,W).

    Returns:
        (B,), float32 or wider.
    """
    wide = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    difference = student.to(wide) - teacher.to(wide)
    total, coefficient, coefficients = _mean_square(difference), 1.0, 1.0
    coarse = difference
    for level in (4, 2, 1):
        if level >= difference.shape[-2]:
            continue
        # a map that a level divides evenly has the same averages from the level before
        even = all(length % (2 * level) == 0 for length in difference.shape[-2:])
        coarse = average_pool_to(coarse if even else difference, (level, level))
        coefficient /= 2.0
        total = total + coefficient * _mean_square(coarse)
        coefficients += coefficient
    return total / coefficients


def _mean_square(maps: Tensor) -> Tensor:
    return maps.square().mean(dim=(1, 2, 3))
