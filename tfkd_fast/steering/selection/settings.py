"""The `[selection]` table of a recipe."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from tfkd_fast.settings import Settings
from tfkd_fast.steering.selection.criteria import find_criterion

DECISIVE = "holdout-top1"
"""The criterion that decides alone in aggregate "accuracy"."""


class SelectionSettings(Settings):
    """When several candidates run, what they differ in and what ranks them. All of it is our choice."""

    budget: Literal["none", "full", "probe", "halving"] = "none"
    """none: one student. full: candidates in every interval after the warm-up. probe: only at the events. halving:
    rounds of successive halving back to back after the warm-up (Jamieson & Talwalkar, AISTATS 2016)."""
    candidates: int = Field(default=4, ge=1)
    """halving: half of those that a round starts with."""
    interval: int = Field(default=5, ge=1)
    """full, probe: epochs that candidates train between two selections."""
    halving_epochs: int = Field(default=1, ge=1)
    """halving: epochs of a round's first rung; each later rung has twice as many."""
    criteria: tuple[str, ...] = Field(default=("holdout-nll", "holdout-top1", "averaged-top1"), min_length=1)
    """Names of the rankings; equal candidates are separated by the first, then the second, ..."""
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = None
    """What the rank or value under each criterion counts in a sum; 1 each where absent."""
    aggregate: Literal["borda", "z-sum", "accuracy", "pareto"] = "borda"
    """What orders the candidates; the Borda order separates those that it leaves equal. borda: the weighted sum of
    ranks. z-sum: the weighted sum of standardised values. accuracy: held-out top-1 alone. pareto: the Pareto front."""
    events: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = tuple(
        epoch / 240 for epoch in (30, 60, 90, 120, 145, 165, 195, 225)
    )
    """Starts of the events of the probe budget, ascending fractions of the run."""
    target: Literal["own", "shared"] = "own"
    """Whether the controller decides for each candidate, or once for all of them."""
    learning_rate_spread: float = Field(default=0.0, ge=0, le=1)
    """Standard deviation of the logarithm of what candidates multiply their learning rate with; see
    `learning_rate_factors`."""
    data_order: Literal["own", "shared"] = "own"
    """Whether each candidate sees the training samples in its own order."""

    @property
    def needs_average(self) -> bool:
        """Whether a criterion in use reads the accuracy of averaged weights."""
        return self.budget != "none" and any(find_criterion(name).needs_average for name in self.criteria)

    @field_validator("candidates")
    @classmethod
    def _enough_candidates(cls, candidates: int, info: ValidationInfo) -> int:
        budget = info.data.get("budget")
        if budget in ("full", "probe", "halving") and candidates < 2:
            raise ValueError(f"budget {budget!r} needs 2 candidates or more")
        power = 1 << candidates.bit_length() - 1  # the largest power of two that is no more
        if budget == "halving" and candidates != power:
            raise ValueError(f"budget 'halving' needs a power of two: choose {power} or {2 * power}")
        return candidates

    @field_validator("criteria")
    @classmethod
    def _known_criteria(cls, criteria: tuple[str, ...]) -> tuple[str, ...]:
        for name in criteria:
            find_criterion(name)
            if criteria.count(name) > 1:
                raise ValueError(f"criterion {name!r} is named twice; give it a weight instead")
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

    @field_validator("events")
    @classmethod
    def _ascending_events(cls, events: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in pairwise(events)):
            raise ValueError("events must ascend")
        if info.data.get("budget") == "probe" and not events:
            raise ValueError("budget 'probe' needs one event at least")
        return events

    @field_validator("data_order")
    @classmethod
    def _candidates_differ(cls, data_order: str, info: ValidationInfo) -> str:
        several = info.data.get("budget", "none") != "none"
        alike = info.data.get("target") == "shared" and info.data.get("learning_rate_spread") == 0
        if several and alike and data_order == "shared":
            raise ValueError(
                "candidates that share target, data order and learning rate are all the same: make selection.target "
                "or selection.data_order 'own', or selection.learning_rate_spread more than 0"
            )
        return data_order
