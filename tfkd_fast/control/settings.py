"""The `[controller]` table of a recipe."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from tfkd_fast.settings import Settings

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class ControllerSettings(Settings):
    """Which controller, when it decides, and how it learns. The values of the learning are our choice."""

    name: Literal["fixed", "schedule", "progressive", "random", "ppo", "reinforce"] = "ppo"
    warmup_epochs: int = Field(default=5, ge=0)
    """Epochs of plain cross-entropy first, for a target that needs class similarities; at most a quarter of the run."""
    interval: int = Field(default=1, ge=1)
    """Epochs that one decision lasts where a single candidate trains."""

    action: tuple[FiniteFloat, ...] = ()
    """Fixed: the action for the whole run; empty for the neutral one (label smoothing 0.1)."""
    true_mass: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.6, 0.999), min_length=2)
    """Schedule and progressive: true-class masses at even distances over the run, with straight lines between."""

    min_std: float = Field(default=0.05, gt=0)
    max_std: float = Field(default=1.0, gt=0)
    initial_std: float = Field(default=0.4, gt=0, validate_default=True)
    """Random, ppo and reinforce: standard deviation of a sampled action, and the bounds that learning keeps it in."""

    learning_rate: float = Field(default=3e-2, gt=0)
    """Of the policy's bias and standard deviation; tens of decisions teach nothing at the usual 3e-4 or 3e-3."""
    network_learning_rate: float = Field(default=3e-3, ge=0)
    """Of the weights of the policy and value networks."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far one update trusts the ratio of new to old probability, around 1."""
    entropy_bonus: float = Field(default=1e-3, ge=0)
    max_gradient_norm: float = Field(default=0.5, gt=0)
    epochs: int = Field(default=4, ge=1)
    """Passes over the buffer in one update."""
    group_buffer: int = Field(default=4, ge=1)
    """Latest decisions over several candidates that each update learns from; there is one update a decision."""
    single_buffer: int = Field(default=8, ge=2)
    """Single-candidate decisions between two updates."""
    discount: float = Field(default=0.9, ge=0, lt=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Single candidate: generalized advantage estimation."""

    @field_validator("true_mass")
    @classmethod
    def _progressive_masses_rise(cls, masses: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if info.data.get("name") == "progressive" and any(before >= after for before, after in pairwise(masses)):
            raise ValueError("progressive masses must rise towards the one-hot label; name = 'schedule' takes any")
        return masses

    @field_validator("initial_std")
    @classmethod
    def _initial_std_within_bounds(cls, std: float, info: ValidationInfo) -> float:
        low, high = info.data.get("min_std", std), info.data.get("max_std", std)
        if not low <= std <= high:
            raise ValueError(f"must lie within min_std = {low:g} to max_std = {high:g}")
        return std
