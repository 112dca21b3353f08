"""What candidates are ranked by: one small function of a candidate's scores for each criterion."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

SLOPE_EVALUATIONS = 3


@dataclass(frozen=True)
class CandidateScore:
    """A candidate at the end of an interval: accuracies are fractions, held-out figures are of evaluation mode."""

    top1: float
    """Held-out accuracy."""
    nll: float
    """Held-out negative log-likelihood after temperature calibration, nats."""
    averaged_top1: float | None
    """Held-out accuracy of the average of the interval's end-of-epoch weights; None where no criterion reads it."""
    train_top1: float
    """Accuracy on the training samples."""
    nll_history: tuple[float, ...]
    """`nll` at the evaluations of the candidate and of the lineage that it continues: oldest first, its own last."""


@dataclass(frozen=True)
class Criterion:
    """A figure of one candidate, and which way is good."""

    higher_is_better: bool
    value: Callable[[CandidateScore], float]
    needs_average: bool = False
    """Whether it reads `CandidateScore.averaged_top1`."""


def holdout_top1(score: CandidateScore) -> float:
    """Held-out accuracy: the goal itself, but noisy on a small split."""
    return score.top1


def holdout_nll(score: CandidateScore) -> float:
    """Calibrated held-out NLL: much less noisy than the accuracy."""
    return score.nll


def nll_slope(score: CandidateScore) -> float:
    """Least-squares slope of the calibrated NLL over the last three evaluations, nats an evaluation: potential.

    With fewer evaluations the slope is over those there are; a single one has none and gives NaN, which ranks last.
    """
    history = score.nll_history[-SLOPE_EVALUATIONS:]
    if len(history) < 2 or not all(map(math.isfinite, history)):
        return math.nan
    return statistics.linear_regression(range(len(history)), history).slope


def averaged_top1(score: CandidateScore) -> float:
    """Held-out accuracy of the averaged weights: a cheap preview of the accuracy after the learning rate falls."""
    if score.averaged_top1 is None:
        raise ValueError("criterion averaged-top1 needs CandidateScore.averaged_top1, got None")
    return score.averaged_top1


def generalisation_gap(score: CandidateScore) -> float:
    """Training accuracy minus held-out accuracy: a guard against over-fitting."""
    return score.train_top1 - score.top1


CRITERIA: dict[str, Criterion] = {
    "holdout-top1": Criterion(True, holdout_top1),
    "holdout-nll": Criterion(False, holdout_nll),
    "nll-slope": Criterion(False, nll_slope),
    "averaged-top1": Criterion(True, averaged_top1, needs_average=True),
    "generalisation-gap": Criterion(False, generalisation_gap),
}
"""Criteria by the name that a recipe uses."""
