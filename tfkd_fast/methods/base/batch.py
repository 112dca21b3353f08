"""What a loss is computed from, the batch that candidates see in a step, and what it gives back."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from tfkd_fast.models import Features
from tfkd_fast.ops import SoftTargetStats

T = TypeVar("T")


class TeacherOutputs(NamedTuple):
    """The outputs of one teacher for a batch, without gradient; `TeacherFacts.labels` has the order of the logits."""

    logits: Tensor  # (n,B,C) float32
    features: Features | None = None  # the same axes in front; None unless the method needs features

    def need_features(self) -> Features:
        """The features, for a method that needs them. Raises ValueError where there are none."""
        return _needed(self.features, "features=True")


class CompanionOutputs(NamedTuple):
    """The student's outputs for the images that are shown beside a batch."""

    logits: Tensor  # (n,B,C)
    labels: Tensor  # (n,B) int64
    indices: Tensor  # (n,B) int64


@dataclass(frozen=True)
class StepBatch:
    """What n candidates are shown in one step, as far as a loss may want to know.

    What a method did not ask for in its `Needs` is None or empty; the methods whose names begin with `need_` give what
    it did ask for.
    """

    labels: Tensor
    """(n,B) int64."""
    indices: Tensor
    """(n,B) int64 in 0 .. num_images-1: which training images these are; each is shown at most once an epoch."""
    first_candidate: int = 0
    """The number of the first of the n candidates."""
    slow_logits: Tensor | None = None
    """(n,B,C): logits of the candidates' averaged weights."""
    features: Features | None = None
    """The candidates' features, (n,B,...) each, with gradient."""
    teachers: tuple[TeacherOutputs, ...] = ()
    """Outputs of the teachers that the plan names, in the order of `Context.teachers`, for the same images."""
    companions: CompanionOutputs | None = None
    """Outputs for the images beside the batch."""
    students: tuple[nn.Module, ...] = ()
    """The n networks themselves, for what neither logits nor features tell."""

    @property
    def candidates(self) -> slice:
        """The numbers of the n candidates: the rows of a tensor (P,...) that holds something of each."""
        return slice(self.first_candidate, self.first_candidate + len(self.labels))

    def need_features(self) -> Features:
        """The candidates' features. Raises ValueError where the method did not ask for them."""
        return _needed(self.features, "features=True")

    def need_slow_logits(self) -> Tensor:
        """The logits of averaged weights, (n,B,C). Raises ValueError where the method did not ask for them."""
        return _needed(self.slow_logits, "slow_decay")

    def need_companions(self) -> CompanionOutputs:
        """The outputs for companions. Raises ValueError where the method did not ask for any."""
        return _needed(self.companions, "companions")


def _needed(value: T | None, need: str) -> T:
    if value is None:
        raise ValueError(f"the method reads what it did not ask for: set {need} in the Needs that it gives")
    return value


class Loss(NamedTuple):
    """The losses of n candidates in one step, term by term."""

    terms: Mapping[str, Tensor]
    """Each term of the loss by its name, such as "hard" or "soft": (n,), a mean over the batch, weight included. What
    is minimised is their sum, added in this order."""
    statistics: SoftTargetStats | None = None
    """Training statistics of the batch, where an operator gave them beside the loss; None: the engine makes them."""

    @property
    def total(self) -> Tensor:
        """(n,): the sum of all terms."""
        return reduce(operator.add, self.terms.values())
