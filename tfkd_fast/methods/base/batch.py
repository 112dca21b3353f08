"""The batch of a step, from which a method computes its loss, and the loss that it returns."""

import operator
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from tfkd_fast.models import Features
from tfkd_fast.ops import SoftTargetStats

T = TypeVar("T")

NO_IMAGES = torch.empty(0)


def _refuse_images(images: Tensor) -> NoReturn:
    raise ValueError("this batch was made by hand, without networks to show other images")


class TeacherOutputs(NamedTuple):
    """The outputs of one teacher for a batch, without gradient; `TeacherFacts.labels` has the order of the logits."""

    logits: Tensor
    """(n,B,C) float32: the teacher's logits."""
    features: Features | None = None
    """The teacher's features, float32, (n,B,...) each; None unless the method needs features."""

    def need_features(self) -> Features:
        """The features, for a method that needs them. Raises ValueError where there are none."""
        return _require(self.features, "features")


class CompanionOutputs(NamedTuple):
    """The student's outputs for the companions of a batch."""

    logits: Tensor
    """(n,B,C): the student's logits for the companions."""
    labels: Tensor
    """(n,B) int64: the labels of the companions."""
    indices: Tensor
    """(n,B) int64: which training images the companions are."""
    features: Features | None = None
    """The student's features of the companions, float32, (n,B,...) each; None unless the method needs features."""
    images: Tensor = NO_IMAGES
    """(n,B,C,H,W): the companions themselves, as `StepBatch.images`."""

    def need_features(self) -> Features:
        """The features, for a method that needs them. Raises ValueError where there are none."""
        return _require(self.features, "features")


@dataclass(frozen=True)
class StepBatch:
    """The batch of n candidates in one step, with all that a loss may read beside their logits.

    A field that the method did not ask for in its `Needs` is None or empty; for such a field the methods whose names
    begin with `need_` raise ValueError.
    """

    labels: Tensor
    """(n,B) int64: the labels of the images."""
    indices: Tensor
    """(n,B) int64: which training images these are, 0 .. num_images-1; each is shown at most once an epoch."""
    first_candidate: int = 0
    """The number of the first of the n candidates."""
    slow_logits: Tensor | None = None
    """(n,B,C): logits of the candidates' averaged weights."""
    features: Features | None = None
    """The candidates' features, float32, (n,B,...) each, with gradient."""
    teachers: tuple[TeacherOutputs, ...] = ()
    """Outputs of the teachers that the plan names, in the order of `Context.teachers`, for the same images."""
    companions: CompanionOutputs | None = None
    """The outputs for the companions of the batch; None for none."""
    students: tuple[nn.Module, ...] = ()
    """The n networks themselves, for losses that need more than logits and features."""
    images: Tensor = NO_IMAGES
    """(n,B,C,H,W): the images as shown: augmented, mixed and standardised, in the dtype that the run computes in."""
    forward: Callable[[Tensor], tuple[Tensor, Features | None]] = _refuse_images
    """Runs the candidates on other images (n,B,C,H,W) in the dtype of `images`, as on the batch: logits (n,B,C) and
    features, with gradient. This is one pass more, which also updates the running statistics of batch norms."""
    teach: Callable[[Tensor], tuple[TeacherOutputs, ...]] = _refuse_images
    """The outputs of all teachers for other images (n,B,C,H,W), such as companions, without gradient."""
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    """Opens a region in which layers compute in the precision of the run, as the candidates did; see `adapt`."""

    @property
    def candidates(self) -> slice:
        """The numbers of the n candidates: the rows of a tensor (P,...) that holds something of each."""
        return slice(self.first_candidate, self.first_candidate + len(self.labels))

    def adapt(self, adapter: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
        """Apply an adapter, a layer or network of the method, to features in the precision of the run.

        A layer that is called directly computes in the dtype of the features, float32, which is slower.

        Args:
            adapter: takes a batch (n*B,...), as any layer of torch does.
            maps: (n,B,...).

        Returns:
            (n,B,...) float32.
        """
        with self.autocast():
            adapted = adapter(maps.flatten(0, 1))
        return adapted.float().unflatten(0, maps.shape[:2])

    def need_features(self) -> Features:
        """The candidates' features. Raises ValueError where the method did not ask for them."""
        return _require(self.features, "features")

    def need_slow_logits(self) -> Tensor:
        """The logits of averaged weights, (n,B,C). Raises ValueError where the method did not ask for them."""
        return _require(self.slow_logits, "slow_decay")

    def need_companions(self) -> CompanionOutputs:
        """The outputs for companions. Raises ValueError where the method did not ask for any."""
        return _require(self.companions, "companions")


def _require(value: T | None, need: str) -> T:
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
