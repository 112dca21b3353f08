"""The matching of a student with each teacher, in logits and in the last feature maps."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tfkd_fast import ops
from tfkd_fast.methods.base import TeacherOutputs
from tfkd_fast.models.layers import BatchNorm, Conv, average_pool_to, norm_relu_pool

ConnectorName = Literal["deep", "linear"]
"""Connectors by name: deep is 1x1, 3x3 and 1x1 convolutions with half of the student's channels between them, linear is
one of 1x1. Batch norm and ReLU after each. The authors' two."""


class MatchedOutputs(NamedTuple):
    """The outputs of n students and M teachers for the same images. Maps are the last ones, after ReLU."""

    logits: Tensor
    """(n,B,C): the students' logits."""
    maps: Tensor
    """(n,B,width,H,W): the students' last maps."""
    teacher_logits: Tensor
    """(n,M,B,C): the teachers' logits."""
    teacher_maps: list[Tensor]
    """M tensors (n,B,width,H,W): the last map of each teacher."""

    @classmethod
    def collect(cls, logits: Tensor, maps: Tensor, teachers: Sequence[TeacherOutputs]) -> "MatchedOutputs":
        """Collect the outputs of students and teachers; maps are cast to the dtype of the logits."""
        teacher_logits = torch.stack([outputs.logits for outputs in teachers], dim=1)
        teacher_maps = [outputs.need_features().after_relu[-1] for outputs in teachers]
        return cls(logits, maps.to(logits.dtype), teacher_logits, [each.to(logits.dtype) for each in teacher_maps])


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


def divergences(outputs: MatchedOutputs, temperature: float) -> Tensor:
    """T^2 KL(softmax(z_m/T) || softmax(z/T)) of each sample from each teacher, (n,B,M)."""
    n, count, batch, classes = outputs.teacher_logits.shape
    logits = outputs.logits.unsqueeze(1).expand(-1, count, -1, -1).reshape(-1, batch, classes)
    teachers = outputs.teacher_logits.reshape(-1, 1, batch, classes)
    each = ops.distillation_loss(logits, teachers, temperature=temperature, reduction="none")
    return each.reshape(n, count, batch).transpose(1, 2)


def distances(outputs: MatchedOutputs, connectors: nn.ModuleList) -> Tensor:
    """Mean square of phi_m(F) - F_m for each sample and teacher, (n,B,M).

    The larger of two maps is average-pooled to the size of the smaller, the student's before its connector.
    """
    n, batch = outputs.logits.shape[:2]
    each = []
    for connector, teacher_maps in zip(connectors, outputs.teacher_maps, strict=True):
        student, teacher = outputs.maps.flatten(0, 1), teacher_maps.flatten(0, 1)
        size = (min(student.shape[-2], teacher.shape[-2]), min(student.shape[-1], teacher.shape[-1]))
        error = connector(_pool_to(student, size)) - _pool_to(teacher, size)
        each.append(error.square().flatten(1).mean(1).view(n, batch))
    return torch.stack(each, dim=-1)


def _pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[-2:] == size else average_pool_to(maps, size)
