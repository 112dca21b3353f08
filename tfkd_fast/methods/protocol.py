"""What a training method is: it plans intervals, computes the loss of a step, and says which candidate lives on.

The engine runs any method through this protocol and names none. Accuracies are fractions here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tfkd_fast.ops import SoftTargetStats
from tfkd_fast.targets import Superclasses

Event = dict[str, Any]
"""One line of metrics.jsonl: its kind under "event", then numbers, strings and lists."""


@dataclass(frozen=True)
class Context:
    """What a method may know of the run that it serves."""

    num_classes: int
    num_images: int
    """To fit on."""
    epochs: int
    seed: int
    device: torch.device
    learning_rate_ratio: Callable[[int], float]
    """Learning rate at the start of an epoch (0-based), over the initial one."""
    superclasses: Superclasses | None = None


@dataclass(frozen=True)
class Interval:
    """Epochs `first_epoch` to `first_epoch + epochs - 1` (0-based), trained by each of `candidates`."""

    first_epoch: int
    epochs: int
    candidates: int

    @property
    def end(self) -> int:
        return self.first_epoch + self.epochs


@dataclass(frozen=True)
class Plan:
    """The next interval, and what to write into the log about it."""

    interval: Interval
    events: list[Event] = field(default_factory=list)
    learning_rate_factors: tuple[float, ...] | None = None
    """On top of the schedule, one a candidate; None is 1 for all."""


class StepBatch(NamedTuple):
    """What n candidates are shown in one step, as far as a loss may want to know."""

    labels: Tensor  # (n,B) int64
    indices: Tensor  # (n,B) int64, 0 .. num_images-1: which images these are; each at most once an epoch
    slow_logits: Tensor | None  # (n,B,C) of their averaged weights, where the method asked for them


@dataclass(frozen=True)
class TrainingStatistics:
    """Means over the training samples that one candidate saw in one epoch, as it trained (augmented)."""

    loss: float
    top1: float
    true_probability: float
    entropy: float  # nats


@dataclass(frozen=True)
class HoldoutMetrics:
    """The figures of `ops.candidate_metrics` for one candidate on the held-out split."""

    top1: float
    top5: float
    nll: float
    calibrated_nll: float
    temperature: float
    brier: float
    ece: float
    entropy: float
    confidence: float


@dataclass(frozen=True)
class EpochResult:
    """One candidate after one epoch; `holdout` is None for a run without a held-out split."""

    training: TrainingStatistics
    holdout: HoldoutMetrics | None


@dataclass(frozen=True)
class IntervalResult:
    """One candidate at the end of an interval, judged by averaged weights where the method asked for them."""

    training: TrainingStatistics
    last: HoldoutMetrics | None  # the weights as they are
    epoch_average: HoldoutMetrics | None  # their running average over the interval's last epoch
    interval_average: HoldoutMetrics | None  # the average of the interval's end-of-epoch weights
    cooled: HoldoutMetrics | None = None  # a copy after `Method.cooldown_epochs` more
    influence: Callable[[], Tensor] | None = None
    """Works out (C,C) float64: entry (y,c) is by how much one step of training would raise (above 0: spoil) the
    held-out loss, per unit of mass that the target of label y gives to class c, learning rate 1."""


@dataclass(frozen=True)
class Outcome:
    """Which candidates live on, and what to write into the log about it."""

    survivors: tuple[int, ...]
    """The best first: slot s continues from survivor s modulo their number."""
    events: list[Event] = field(default_factory=list)


class Method(ABC):
    """A training method. Its state is per run: one object serves one run from the first epoch to the last."""

    max_candidates: int
    """The most candidates that one interval trains."""
    needs_holdout: bool
    """Whether a held-out split is needed to steer."""
    needs_epoch_average: bool
    """Whether `IntervalResult.epoch_average` is read."""
    needs_interval_average: bool
    """Whether `IntervalResult.interval_average` is read, where several candidates train."""
    cooldown_epochs: int = 0
    """How long a copy of each candidate trains on before it is judged, while the learning rate falls to zero along a
    straight line; `IntervalResult.cooled` is then read, and the averages are not."""
    needs_joint_steps: bool = False
    """Whether `loss` wants all candidates of the interval at once, on the same batch."""
    own_initial_weights: bool = False
    """Whether candidates start from different weights rather than from the same."""
    slow_decay: float | None = None
    """Of the moving average of the weights that gives `StepBatch.slow_logits`; None where the method reads none."""

    @abstractmethod
    def begin_interval(self, epoch: int) -> Plan:
        """The interval that starts at `epoch` (0-based)."""

    @abstractmethod
    def data_stream(self, candidate: int) -> int:
        """The random stream of a candidate's data order and augmentation."""

    @abstractmethod
    def loss(self, logits: Tensor, batch: StepBatch, candidates: slice) -> tuple[Tensor, SoftTargetStats]:
        """Mean losses (n,) and training statistics of a step of n candidates with logits (n,B,C).

        No host synchronisation, and every tensor that it reads keeps its place in memory for the whole run: a step is
        captured once, then replayed.
        """

    @abstractmethod
    def end_epoch(self, results: Sequence[EpochResult]) -> None:
        """Called after each epoch with one result a candidate."""

    def cooldown(self) -> AbstractContextManager[None]:
        """Open between the interval's last `end_epoch` and `end_interval`, while copies of the candidates train. At its
        end everything is as it was."""
        return nullcontext()

    @abstractmethod
    def end_interval(self, results: Sequence[IntervalResult]) -> Outcome:
        """Called after the interval's last `end_epoch`."""

    def summary(self) -> dict[str, Any]:
        """What the method adds to summary.json."""
        return {}

    def files(self) -> dict[str, bytes]:
        """What the method adds to the run folder at the end, by file name."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors, numbers, strings and containers of them."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
