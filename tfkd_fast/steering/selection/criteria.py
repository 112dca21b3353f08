"""The criteria that rank candidates: each is a function of a candidate's scores.

Other distributions can add criteria: an entry point `name = module:criterion` of the group `tfkd_fast.criteria` makes
a `RankingCriterion` available to recipes by its name.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from tfkd_fast.errors import UserError, nearest
from tfkd_fast.plugins import Registry

SLOPE_EVALUATIONS = 3
"""Number of evaluations that `nll_slope` fits a line to."""


@dataclass(frozen=True)
class CandidateScore:
    """The scores of a candidate at the end of an interval; accuracies are fractions."""

    top1: float
    """Held-out accuracy in evaluation mode."""
    nll: float
    """Held-out negative log-likelihood after temperature calibration, nats."""
    averaged_top1: float | None
    """Held-out accuracy of the average of the interval's end-of-epoch weights; None if no criterion reads it."""
    train_top1: float
    """Accuracy on the training samples."""
    nll_history: tuple[float, ...]
    """Values of `nll` at all evaluations of the candidate and of its ancestors, oldest first and its own last."""

    @property
    def diverged(self) -> bool:
        """Whether the candidate diverged: one of its scores is NaN."""
        averaged = 0.0 if self.averaged_top1 is None else self.averaged_top1
        return any(map(math.isnan, (self.top1, self.nll, averaged, self.train_top1)))


@dataclass(frozen=True)
class RankingCriterion:
    """A figure of one candidate and its direction."""

    higher_is_better: bool
    """Whether the highest value ranks first; else the lowest does."""
    value: Callable[[CandidateScore], float]
    """The figure as a function of the candidate's scores."""
    needs_average: bool = False
    """Whether the criterion reads `CandidateScore.averaged_top1`."""


def holdout_top1(score: CandidateScore) -> float:
    """Return criterion R1, the held-out accuracy: the goal itself, but noisy on a small split."""
    return score.top1


def holdout_nll(score: CandidateScore) -> float:
    """Return criterion R2, the calibrated held-out NLL in nats: much less noisy than the accuracy."""
    return score.nll


def nll_slope(score: CandidateScore) -> float:
    """Return criterion R3, the least-squares slope of the calibrated NLL over three evaluations, nats per evaluation.

    With two evaluations the slope is over these. A single one gives NaN, which ranks last, and so does a history that
    is not finite.
    """
    history = score.nll_history[-SLOPE_EVALUATIONS:]
    if len(history) < 2 or not all(map(math.isfinite, history)):
        return math.nan
    return statistics.linear_regression(range(len(history)), history).slope


def averaged_top1(score: CandidateScore) -> float:
    """Return criterion R4, the held-out accuracy of averaged weights: a preview of the accuracy at a low learning rate.

    Raises:
        ValueError: the score has no averaged accuracy.
    """
    if score.averaged_top1 is None:
        raise ValueError("criterion averaged-top1 needs CandidateScore.averaged_top1, got None")
    return score.averaged_top1


def generalisation_gap(score: CandidateScore) -> float:
    """Return criterion R5, training accuracy minus held-out accuracy: a guard against over-fitting."""
    return score.train_top1 - score.top1


_OWN = {
    "holdout-top1": RankingCriterion(True, holdout_top1),
    "holdout-nll": RankingCriterion(False, holdout_nll),
    "nll-slope": RankingCriterion(False, nll_slope),
    "averaged-top1": RankingCriterion(True, averaged_top1, needs_average=True),
    "generalisation-gap": RankingCriterion(False, generalisation_gap),
}

CRITERIA = Registry(
    "criterion", "tfkd_fast.criteria", RankingCriterion, "tfkd_fast.steering.selection.RankingCriterion", _OWN
)
"""Criteria by the names that recipes use: R1 to R5 in order, then those of other distributions."""


def find_criterion(name: str) -> RankingCriterion:
    """Return the criterion of this name, from this package or else from an installed distribution.

    Raises:
        ValueError: the name is unknown, or the criterion of a distribution cannot be used, see `Registry`.
    """
    if name not in CRITERIA:
        raise ValueError(
            f"unknown criterion {name!r}: {nearest(name, CRITERIA)}; one of another distribution has to be installed"
        )
    try:
        return CRITERIA[name]
    except UserError as error:
        raise ValueError(str(error)) from error
