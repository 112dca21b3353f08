"""The matching of a student with each teacher, in logits and in the last feature maps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tfkd_fast import ops
from tfkd_fast.methods.base import TeacherOutputs
from tfkd_fast.methods.several_teachers.connectors import connect, mean_squares


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


def divergences(outputs: MatchedOutputs, temperature: float) -> Tensor:
    """T^2 KL(softmax(z_m/T) || softmax(z/T)) of each sample from each teacher, (n,B,M)."""
    n, count, batch, classes = outputs.teacher_logits.shape
    logits = outputs.logits.unsqueeze(1).expand(-1, count, -1, -1).reshape(-1, batch, classes)
    teachers = outputs.teacher_logits.reshape(-1, 1, batch, classes)
    each = ops.distillation_loss(logits, teachers, temperature=temperature, reduction="none")
    return each.reshape(n, count, batch).transpose(1, 2)


def distances(outputs: MatchedOutputs, connectors: nn.ModuleList) -> Tensor:
    """Mean square of phi_m(F) - F_m for each sample and teacher, (n,B,M), see `connect`."""
    pairs = (
        connect(connector, outputs.maps, maps) for connector, maps in zip(connectors, outputs.teacher_maps, strict=True)
    )
    return torch.stack([mean_squares(*pair, len(outputs.logits)) for pair in pairs], dim=-1)
