"""What a loss is computed from: the batch that candidates see in a step, and what teachers make of it."""

from typing import NamedTuple

from torch import Tensor, nn

from tfkd_fast.models import Features


class TeacherOutputs(NamedTuple):
    """The outputs of one teacher for a batch, without gradient; `TeacherFacts.labels` has the order of the logits."""

    logits: Tensor  # (n,B,C) float32
    features: Features | None  # the same axes in front; where the method asked for features


class CompanionOutputs(NamedTuple):
    """The student on the images that were shown beside the batch."""

    logits: Tensor  # (n,B,C)
    labels: Tensor  # (n,B) int64
    indices: Tensor  # (n,B) int64


class StepBatch(NamedTuple):
    """What n candidates are shown in one step, as far as a loss may want to know."""

    labels: Tensor  # (n,B) int64
    indices: Tensor  # (n,B) int64, 0 .. num_images-1: which images these are; each at most once an epoch
    slow_logits: Tensor | None  # (n,B,C) of their averaged weights, where the method asked for them
    features: Features | None = None  # of the candidates, (n,B,...) each, where the method asked for them
    teachers: tuple[TeacherOutputs, ...] = ()  # in the order of `Context.teachers`, those wanted, on the same images
    companions: CompanionOutputs | None = None  # where the method asked for them
    students: tuple[nn.Module, ...] = ()  # the networks themselves, for what neither logits nor features tell
