"""The results of epochs and intervals, and the outcome of a selection. Accuracies are fractions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tfkd_fast.events import Event


@dataclass(frozen=True)
class TrainingStatistics:
    """Means over the training samples that one candidate saw in one epoch, as it trained (augmented)."""

    loss: float
    """The loss that is minimised, all its terms together."""
    top1: float
    true_probability: float
    entropy: float
    """Entropy of the predictions, nats."""
    terms: dict[str, float] = field(default_factory=dict)
    """The terms of the loss by name; empty where it has one only."""


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
    """The result of one candidate after one epoch."""

    training: TrainingStatistics
    holdout: HoldoutMetrics | None
    """Held-out figures; None for a run that holds no images out."""
    holdout_by_class: tuple[float, ...] | None = None
    """Top-1 on the held-out images of each class; NaN for a class of which none were judged."""
    epoch_average: HoldoutMetrics | None = None
    """Held-out figures of the average of the weights over the steps of the epoch, where the method asked for them and
    the epoch does not end an interval."""


@dataclass(frozen=True)
class IntervalResult:
    """The result of one candidate at the end of an interval, also for averaged weights where the method asked for
    them."""

    training: TrainingStatistics
    last: HoldoutMetrics | None
    """Held-out figures of the weights as they are."""
    epoch_average: HoldoutMetrics | None
    """Held-out figures of the average of the weights over the steps of the interval's last epoch."""
    interval_average: HoldoutMetrics | None
    """Held-out figures of the average of the weights at the ends of the interval's epochs."""
    after_cooldown: HoldoutMetrics | None = None
    """Held-out figures of a copy that trained for `Needs.cooldown_epochs` more."""
    influence: Callable[[], Tensor] | None = None
    """Computes (C,C) float64: entry (y,c) is by how much one step of training would raise the held-out loss, in nats
    per unit of mass that the target of label y gives to class c, at learning rate 1. Above 0 the step does harm."""


@dataclass(frozen=True)
class AverageResult:
    """The result of the average of the weights of several candidates at the end of an interval."""

    average: HoldoutMetrics
    """Held-out figures of the average of the weights that single candidates are judged by without a cooldown."""
    interval_average: HoldoutMetrics | None
    """Held-out figures of the average over the candidates of their averages over the interval, where the method asked
    for these."""


JudgeAverage = Callable[[Sequence[int]], AverageResult]
"""Judges the average of the weights of some candidates, by their slots."""


def refuse_average(slots: Sequence[int]) -> AverageResult:
    """The `JudgeAverage` of an engine that averages no candidates, with methods that do not ask for it."""
    raise ValueError(f"the average of candidates {slots} cannot be judged: nothing is averaged here")


@dataclass(frozen=True)
class Outcome:
    """The candidates that continue, and the events about their selection for the log."""

    survivors: tuple[int, ...]
    """The best first: slot s continues from survivor s modulo their number."""
    events: Sequence[Event] = ()
    averaged: tuple[int, ...] = ()
    """Candidates whose average takes the place of the only survivor, which is one of them; empty for no average."""
