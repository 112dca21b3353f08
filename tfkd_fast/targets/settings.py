"""The `[target]` table of a recipe."""

from typing import Literal

from pydantic import Field

from tfkd_fast.settings import Settings
from tfkd_fast.targets.true_mass import NEUTRAL_TRUE_MASS


class TargetSettings(Settings):
    """Which family of target distributions, and its constants."""

    family: Literal["one-hot", "label-smoothing", "scalar", "rank-binned", "full-matrix"] = "rank-binned"
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing: the mass that leaves the true class."""
    bins: Literal["coarse", "fine"] = "coarse"
    """Rank-binned: how finely the similarity ranks are cut."""
    true_mass_min: float = Field(default=0.5, gt=0, lt=NEUTRAL_TRUE_MASS)
    """Controlled families: the least mass of the true class; from 0.5 on it is always the most likely one."""
    true_mass_max: float = Field(default=0.999, gt=NEUTRAL_TRUE_MASS, le=1)
    memory_decay: float = Field(default=0.9, ge=0, lt=1)
    """Rank-binned: the share of the class-similarity memory that one epoch leaves as it was."""
