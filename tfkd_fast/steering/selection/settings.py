"""The `[selection]` table of a recipe: one class for each budget of candidates."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from tfkd_fast.settings import LARGEST, Forms, Settings, named_once
from tfkd_fast.steering.selection.criteria import find_criterion

Average = Literal["none", "all", "best-two", "greedy"]
"""Averages of candidates that are ranked with them."""

DECISIVE = "holdout-top1"
"""The criterion that decides alone in aggregate "accuracy"."""


class SelectionBase(Settings):
    """When several candidates run, what they differ in and what ranks them. All defaults are our choice."""

    budget: str
    """When several candidates train: never (none), in every interval after the warm-up (full), at the events only
    (probe), or in rounds of successive halving (halving; Jamieson & Talwalkar, AISTATS 2016)."""

    @property
    def needs_average(self) -> bool:
        """Whether a criterion in use reads the accuracy of averaged weights."""
        return False


class NoSelectionSettings(SelectionBase):
    """One student, or peers that train beside each other to the end."""

    budget: Literal["none"] = "none"


class RankedSelectionSettings(SelectionBase):
    """What every budget reads under which candidates are ranked."""

    candidates: int = Field(default=4, ge=2, le=64)
    """Number of candidates in an interval; under successive halving, half of those that a round starts with."""
    criteria: Annotated[tuple[str, ...], AfterValidator(named_once)] = Field(
        default=("holdout-nll", "holdout-top1", "averaged-top1"), min_length=1
    )
    """Names of the criteria that candidates are ranked by; the first separates candidates of the same score, then the
    second, and so on."""
    weights: tuple[Annotated[float, Field(ge=0, le=LARGEST)], ...] | None = None
    """Weight of the rank or value under each criterion in a sum; unset, each weighs 1."""
    aggregate: Literal["borda", "z-sum", "accuracy", "pareto"] = "borda"
    """Order of the candidates: by the weighted sum of ranks (borda), the weighted sum of standardised values (z-sum),
    held-out top-1 alone (accuracy) or the Pareto front (pareto); the Borda order separates those left equal."""
    target: Literal["own", "shared"] = "own"
    """Whether the controller decides for each candidate on its own, or once for all of them."""
    learning_rate_spread: float = Field(default=0.0, ge=0, le=1)
    """Standard deviation of the logarithm of the random factors that multiply the learning rates of the candidates,
    the first of which keeps the schedule."""
    data_order: Literal["own", "shared"] = "own"
    """Whether each candidate sees the training samples in an order of its own, or all in the same one."""

    @property
    def needs_average(self) -> bool:
        """Whether a criterion in use reads the accuracy of averaged weights."""
        return any(find_criterion(name).needs_average for name in self.criteria)

    @field_validator("criteria")
    @classmethod
    def _known_criteria(cls, criteria: tuple[str, ...]) -> tuple[str, ...]:
        for name in criteria:
            find_criterion(name)
        return criteria

    @field_validator("weights")
    @classmethod
    def _one_weight_a_criterion(
        cls, weights: tuple[float, ...] | None, info: ValidationInfo
    ) -> tuple[float, ...] | None:
        criteria = info.data.get("criteria")
        if weights is None or criteria is None:
            return weights
        if len(weights) != len(criteria):
            raise ValueError(f"{len(criteria)} criteria need {len(criteria)} weights, got {len(weights)}")
        if not any(weights):
            raise ValueError("one weight at least must be above 0")
        return weights

    @field_validator("aggregate")
    @classmethod
    def _accuracy_is_a_criterion(cls, aggregate: str, info: ValidationInfo) -> str:
        criteria = info.data.get("criteria")
        if aggregate == "accuracy" and criteria is not None and DECISIVE not in criteria:
            raise ValueError(f"aggregate 'accuracy' needs {DECISIVE} among the criteria")
        return aggregate

    @field_validator("data_order")
    @classmethod
    def _candidates_differ(cls, data_order: str, info: ValidationInfo) -> str:
        alike = info.data.get("target") == "shared" and info.data.get("learning_rate_spread") == 0
        if alike and data_order == "shared":
            raise ValueError(
                "candidates that share target, data order and learning rate are all the same: make selection.target "
                "or selection.data_order 'own', or selection.learning_rate_spread more than 0"
            )
        return data_order


class IntervalSelectionSettings(RankedSelectionSettings):
    """What budgets read whose candidates train for a fixed number of epochs."""

    interval: int = Field(default=5, ge=0, le=1_000_000)
    """Epochs that candidates train from one selection to the next; 0 for a single selection at the end of the run."""
    average: Average = "none"
    """The average of the weights of several candidates, ranked as one more candidate: that of all of them, of the best
    two, or a greedy soup, which takes the candidates from the best on and keeps each that improves it (Wortsman et al.,
    ICML 2022); none for no such candidate. Training continues from the average where it ranks first."""


class FullSelectionSettings(IntervalSelectionSettings):
    """Candidates in every interval after the warm-up, or from a later moment on."""

    budget: Literal["full"]
    start: float = Field(default=0.0, ge=0, lt=1)
    """Share of the run that one student trains first. Candidates that part in the middle of a run stay close enough
    for the average of their weights to be a good network; those that part at its beginning do not."""


class ProbeSelectionSettings(IntervalSelectionSettings):
    """Candidates at the events only, one student between them."""

    budget: Literal["probe"]
    events: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        default=tuple(epoch / 240 for epoch in (30, 60, 90, 120, 145, 165, 195, 225)), min_length=1
    )
    """Starts of the events, as ascending shares of the run."""

    @field_validator("events")
    @classmethod
    def _ascending_events(cls, events: tuple[float, ...]) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in pairwise(events)):
            raise ValueError("events must ascend")
        return events


class HalvingSelectionSettings(RankedSelectionSettings):
    """Rounds of successive halving, back to back after the warm-up."""

    budget: Literal["halving"]
    halving_epochs: int = Field(default=1, ge=1, le=1_000_000)
    """Epochs of the first rung of a round; each later rung has twice as many."""

    @field_validator("candidates")
    @classmethod
    def _power_of_two(cls, candidates: int) -> int:
        power = 1 << candidates.bit_length() - 1  # the largest power of two that is no more
        if candidates != power:
            raise ValueError(f"budget 'halving' needs a power of two: choose {power} or {2 * power}")
        return candidates


SelectionSettings = Annotated[
    NoSelectionSettings | FullSelectionSettings | ProbeSelectionSettings | HalvingSelectionSettings, Forms("budget")
]
"""The `[selection]` table."""
