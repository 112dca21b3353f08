"""What candidates are ranked by: one small function of a candidate's scores for each criterion.

Other distributions may add criteria: an entry point `name = module:criterion` of group `tfkd_fast.criteria` makes the
`Criterion` that it points to available to recipes by its name.
"""

import importlib.metadata
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from tfkd_fast.errors import nearest

ENTRY_POINTS = "tfkd_fast.criteria"
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
    """R1, held-out accuracy: the goal itself, but noisy on a small split."""
    return score.top1


def holdout_nll(score: CandidateScore) -> float:
    """R2, calibrated held-out NLL: much less noisy than the accuracy."""
    return score.nll


def nll_slope(score: CandidateScore) -> float:
    """R3, least-squares slope of the calibrated NLL over the last three evaluations, nats an evaluation: potential.

    With fewer evaluations the slope is over those there are; a single one has none and gives NaN, which ranks last.
    """
    history = score.nll_history[-SLOPE_EVALUATIONS:]
    if len(history) < 2 or not all(map(math.isfinite, history)):
        return math.nan
    return statistics.linear_regression(range(len(history)), history).slope


def averaged_top1(score: CandidateScore) -> float:
    """R4, held-out accuracy of the averaged weights: a cheap preview of the accuracy after the learning rate falls."""
    if score.averaged_top1 is None:
        raise ValueError("criterion averaged-top1 needs CandidateScore.averaged_top1, got None")
    return score.averaged_top1


def generalisation_gap(score: CandidateScore) -> float:
    """R5, training accuracy minus held-out accuracy: a guard against over-fitting."""
    return score.train_top1 - score.top1


CRITERIA: dict[str, Criterion] = {
    "holdout-top1": Criterion(True, holdout_top1),
    "holdout-nll": Criterion(False, holdout_nll),
    "nll-slope": Criterion(False, nll_slope),
    "averaged-top1": Criterion(True, averaged_top1, needs_average=True),
    "generalisation-gap": Criterion(False, generalisation_gap),
}
"""The criteria of this package by the name that a recipe uses: R1 to R5 in order."""


def find_criterion(name: str) -> Criterion:
    """The criterion of this name: one of this package, or else one that an installed distribution offers.

    Only the entry point that is named is imported. None takes the name of a criterion of this package.

    Raises:
        ValueError: for an unknown name, one that several distributions offer, or an entry point that is no criterion.
    """
    if name in CRITERIA:
        return CRITERIA[name]
    installed = importlib.metadata.entry_points(group=ENTRY_POINTS)
    offers = installed.select(name=name)
    if not offers:
        raise ValueError(f"unknown criterion {name!r}: {nearest(name, {*CRITERIA, *installed.names})}")
    if len(offers) > 1:
        origins = " and ".join(map(_origin, offers))
        raise ValueError(f"criterion {name!r} is offered by {origins}: uninstall all but one")
    (offer,) = offers
    try:
        criterion = offer.load()
    except Exception as error:  # whatever a module of somebody else raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"criterion {name!r} of {_origin(offer)} cannot be imported ({reason})") from error
    if not isinstance(criterion, Criterion):
        kind = type(criterion).__name__
        raise ValueError(
            f"criterion {name!r} of {_origin(offer)} must be a tfkd_fast.steering.selection.Criterion, "
            f"is of type {kind}"
        )
    return criterion


def _origin(offer: importlib.metadata.EntryPoint) -> str:
    distribution = offer.dist.name if offer.dist else "an unnamed distribution"
    return f"{distribution} (entry point {offer.name} = {offer.value})"
