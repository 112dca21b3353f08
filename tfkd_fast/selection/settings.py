"""The `[selection]` table of a recipe."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from tfkd_fast.errors import nearest
from tfkd_fast.selection.criteria import CRITERIA
from tfkd_fast.settings import Settings


class SelectionSettings(Settings):
    """When several candidates run and what ranks them. Instants, criteria and weights are our choice."""

    budget: Literal["none", "full", "probe"] = "none"
    """none: one student. full: candidates in every interval after the warm-up. probe: only at the events."""
    candidates: int = Field(default=4, ge=1)
    interval: int = Field(default=5, ge=1)
    """Epochs that candidates train between two selections."""
    criteria: tuple[str, ...] = Field(default=("holdout-nll", "holdout-top1", "averaged-top1"), min_length=1)
    """Names of the rankings; equal candidates are separated by the first, then the second, ..."""
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = None
    """What the rank under each criterion counts; 1 each where absent."""
    events: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = tuple(
        epoch / 240 for epoch in (30, 60, 90, 120, 145, 165, 195, 225)
    )
    """Starts of the events of the probe budget, ascending fractions of the run."""
    data_order: Literal["own", "shared"] = "own"
    """Whether each candidate sees the training samples in its own order."""

    @property
    def needs_average(self) -> bool:
        """Whether a criterion in use reads the accuracy of averaged weights."""
        return self.budget != "none" and any(CRITERIA[name].needs_average for name in self.criteria)

    @field_validator("candidates")
    @classmethod
    def _enough_candidates(cls, candidates: int, info: ValidationInfo) -> int:
        budget = info.data.get("budget")
        if budget in ("full", "probe") and candidates < 2:
            raise ValueError(f"budget {budget!r} needs 2 candidates or more")
        return candidates

    @field_validator("criteria")
    @classmethod
    def _known_criteria(cls, criteria: tuple[str, ...]) -> tuple[str, ...]:
        for name in criteria:
            if name not in CRITERIA:
                raise ValueError(f"unknown criterion {name!r}: {nearest(name, CRITERIA)}")
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

    @field_validator("events")
    @classmethod
    def _ascending_events(cls, events: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in pairwise(events)):
            raise ValueError("events must ascend")
        if info.data.get("budget") == "probe" and not events:
            raise ValueError("budget 'probe' needs one event at least")
        return events
