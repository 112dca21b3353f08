"""The `[target]` table of a recipe."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from tfkd_fast.settings import Settings
from tfkd_fast.steering.targets.true_mass import NEUTRAL_TRUE_MASS

Source = Literal["memory", "peers", "slow-self"]
"""Predictions of the student itself that may be part of what it is taught:

* memory: its own for the same sample one epoch earlier, under another augmentation (as Kim et al., ICCV 2021: PS-KD);
* peers: the mean of all candidates for the same batch (as Zhang et al., CVPR 2018; Lan et al., NeurIPS 2018);
* slow-self: of an exponential moving average of its weights, for the same batch (as Tarvainen & Valpola, NeurIPS 2017).
"""


class TargetSettings(Settings):
    """Which family of target distributions, and its constants."""

    family: Literal["one-hot", "label-smoothing", "scalar", "rank-binned", "full-matrix", "superclass"] = "rank-binned"
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing: the mass that leaves the true class."""
    bins: Literal["coarse", "fine"] = "coarse"
    """Rank-binned: how finely the similarity ranks are cut."""
    true_mass_min: float = Field(default=0.5, gt=0, lt=NEUTRAL_TRUE_MASS)
    """Controlled families: the least mass of the true class; from 0.5 on it is always the most likely one."""
    true_mass_max: float = Field(default=0.999, gt=NEUTRAL_TRUE_MASS, le=1)
    memory_decay: float = Field(default=0.9, ge=0, lt=1)
    """Rank-binned: the share of the class-similarity memory that one epoch leaves as it was."""

    sources: tuple[Source, ...] = ()
    """What is mixed with the class target; each adds two numbers to the action: its share and its temperature."""
    source_share: float = Field(default=0.3, gt=0, lt=1, validate_default=True)
    """Of each source under the neutral action."""
    source_temperature: float = Field(default=2.0, gt=0)
    """Of each source under the neutral action."""
    slow_self_decay: float = Field(default=0.999, ge=0, lt=1)
    """Slow self: the share of the averaged weights that one step leaves as they were."""

    @property
    def takes_action(self) -> bool:
        """Whether there is something to steer."""
        return self.family not in ("one-hot", "label-smoothing") or bool(self.sources)

    @field_validator("sources")
    @classmethod
    def _each_source_once(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        if len(set(sources)) < len(sources):
            raise ValueError("a source may be named once")
        return sources

    @field_validator("source_share")
    @classmethod
    def _class_target_keeps_a_share(cls, share: float, info: ValidationInfo) -> float:
        sources = len(info.data.get("sources", ()))
        if sources * share >= 1:
            raise ValueError(f"{sources} sources must leave the class target a share")
        return share
