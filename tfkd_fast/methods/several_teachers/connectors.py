"""Connectors from the student's last maps to as many channels as those of a teacher have."""

from typing import Literal

from torch import Tensor, nn

from tfkd_fast.methods.taught.maps import pool_to_smaller
from tfkd_fast.models.layers import BatchNorm, Conv, norm_relu_pool

ConnectorName = Literal["deep", "linear"]
"""Connectors by name: deep is 1x1, 3x3 and 1x1 convolutions with half of the student's channels between them, linear is
one of 1x1. Batch norm and ReLU after each. The two of the authors of CA-MKD and MMKD."""


class Connector(nn.Module):
    """The connector phi_m from the student's maps (B,width,H,W) to as many channels as the teacher has."""

    def __init__(self, kind: ConnectorName, width: int, teacher_width: int) -> None:
        super().__init__()
        inner, kernels = ([width // 2] * 2, (1, 3, 1)) if kind == "deep" else ([], (1,))
        widths = [width, *inner, teacher_width]
        pairs = zip(widths, widths[1:], kernels, strict=False)
        self.conv = nn.ModuleList(Conv(a, b, kernel, bias=True) for a, b, kernel in pairs)
        self.norm = nn.ModuleList(BatchNorm(b) for b in widths[1:])

    def forward(self, maps: Tensor) -> Tensor:
        for conv, norm in zip(self.conv, self.norm, strict=True):
            maps = norm_relu_pool(norm, conv(maps))
        return maps


def connect(connector: nn.Module, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The student's maps behind their connector and the teacher's maps, (n*B,width,H,W) both.

    The larger of two maps is average-pooled to the size of the smaller, the student's before its connector.

    Args:
        connector: phi_m.
        student: (n,B,...), the student's maps.
        teacher: (n,B,...), the maps of teacher m.
    """
    maps, target = pool_to_smaller(student.flatten(0, 1), teacher.flatten(0, 1))
    return connector(maps), target


def mean_squares(maps: Tensor, target: Tensor, n: int) -> Tensor:
    """The mean square of the difference of maps (n*B,width,H,W) for each sample, (n,B)."""
    return (maps - target).square().flatten(1).mean(1).unflatten(0, (n, -1))
