"""What a training method is: it plans intervals, computes the loss of a step, and says which candidate lives on.

The engine runs any method through this protocol and names none. Accuracies are fractions here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tfkd_fast.ops import SoftTargetStats

Event = dict[str, Any]
"""One line of metrics.jsonl: its kind under "event", then numbers, strings and lists."""


@dataclass(frozen=True)
class Context:
    """What a method may know of the run that it serves."""

    num_classes: int
    epochs: int
    seed: int
    device: torch.device
    learning_rate_ratio: Callable[[int], float]
    """Learning rate at the start of an epoch (0-based), over the initial one."""


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


@dataclass(frozen=True)
class Outcome:
    """The candidate that every slot continues from, and what to write into the log about it."""

    winner: int
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

    @abstractmethod
    def begin_interval(self, epoch: int) -> Plan:
        """The interval that starts at `epoch` (0-based)."""

    @abstractmethod
    def data_stream(self, candidate: int) -> int:
        """The random stream of a candidate's data order and augmentation."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, candidates: slice) -> tuple[Tensor, SoftTargetStats]:
        """Mean losses (n,) and training statistics of a step of n candidates: logits (n,B,C), labels (n,B).

        No host synchronisation, and every tensor that it reads keeps its place in memory for the whole run: a step is
        captured once, then replayed.
        """

    @abstractmethod
    def end_epoch(self, results: Sequence[EpochResult]) -> None:
        """Called after each epoch with one result a candidate."""

    @abstractmethod
    def end_interval(self, results: Sequence[IntervalResult]) -> Outcome:
        """Called after the interval's last `end_epoch`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors, numbers, strings and containers of them."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
