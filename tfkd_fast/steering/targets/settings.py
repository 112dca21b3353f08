"""The `[target]` table of a recipe: one class for each family of target distributions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from tfkd_fast.plugins import Registry
from tfkd_fast.settings import Forms, ReadIf, Settings, form_name, named_once
from tfkd_fast.steering.targets.superclass import Superclasses
from tfkd_fast.steering.targets.target import Target
from tfkd_fast.steering.targets.true_mass import NEUTRAL_TRUE_MASS

Source = Literal["memory", "peers", "slow-self"]
"""Predictions of the student itself that may be part of what it is taught:

* memory: its own for the same sample one epoch earlier, under another augmentation (as Kim et al., ICCV 2021: PS-KD);
* peers: the mean of all candidates for the same batch (as Zhang et al., CVPR 2018; Lan et al., NeurIPS 2018);
* slow-self: of an exponential moving average of its weights, for the same batch (as Tarvainen & Valpola, NeurIPS 2017).
"""


def _with_source(name: Source) -> ReadIf:
    def test(sources: Any) -> bool:
        return isinstance(sources, list | tuple) and name in sources

    return ReadIf("sources", test, f"sources has {name}")


WITH_SOURCES = ReadIf("sources", bool, "sources is not empty")


class TargetBase(Settings):
    """What every family reads: what is mixed with the class target."""

    family: str
    """Family of the class target: the distribution that teaches a label."""
    sources: Annotated[tuple[Source, ...], AfterValidator(named_once)] = ()
    """Predictions of the student that are mixed with the class target: memory (its own, one epoch earlier), peers (the
    mean of all candidates), slow-self (those of averaged weights). Each adds a share and a temperature to the
    action."""
    source_share: Annotated[float, WITH_SOURCES] = Field(default=0.3, gt=0, lt=1, validate_default=True)
    """Share of each source in the target under the neutral action; all together must leave the class target a share."""
    source_temperature: Annotated[float, WITH_SOURCES] = Field(default=2.0, ge=0.01, le=1_000)
    """Temperature of each source under the neutral action."""
    shared_memory: Annotated[bool, _with_source("memory")] = False
    """Whether candidates remember in common: after each epoch the memory of each is the mean of their predictions."""
    slow_self_decay: Annotated[float, _with_source("slow-self")] = Field(default=0.999, ge=0, lt=1)
    """Share of the averaged weights of slow-self that one training step leaves as they were."""
    peers: Annotated[int, _with_source("peers")] = Field(default=4, ge=1, le=64)
    """Number of students that teach each other under selection.budget none; any other budget sets the number itself."""

    @property
    def takes_action(self) -> bool:
        """Whether there is something to steer."""
        return bool(self.sources)

    @property
    def refers_to_student(self) -> bool:
        """Whether the target depends on what the student has learned, so that one-hot labels come first."""
        return bool(self.sources)

    @field_validator("source_share")
    @classmethod
    def _class_target_keeps_a_share(cls, share: float, info: ValidationInfo) -> float:
        sources = len(info.data.get("sources", ()))
        if sources * share >= 1:
            raise ValueError(f"{sources} sources must leave the class target a share")
        return share


class OneHotTargetSettings(TargetBase):
    """The label alone, as in cross-entropy."""

    family: Literal["one-hot"]


class LabelSmoothingTargetSettings(TargetBase):
    """A label smoothed evenly over the other classes."""

    family: Literal["label-smoothing"]
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Mass that leaves the true class; the other classes share it evenly."""


class SteeredTargetSettings(TargetBase):
    """What the families read that a controller steers."""

    true_mass_min: float = Field(default=0.5, gt=0, lt=NEUTRAL_TRUE_MASS)
    """Least mass of the true class; from 0.5 on the true class is always the most likely one."""
    true_mass_max: float = Field(default=0.999, gt=NEUTRAL_TRUE_MASS, le=1)
    """Largest mass of the true class."""

    @property
    def takes_action(self) -> bool:
        """Whether there is something to steer."""
        return True


class ScalarTargetSettings(SteeredTargetSettings):
    """Label smoothing whose true-class mass is the action."""

    family: Literal["scalar"]


class RankBinnedTargetSettings(SteeredTargetSettings):
    """A free-form target: the true-class mass, and how the rest falls over the ranks of similar classes."""

    family: Literal["rank-binned"] = "rank-binned"
    bins: Literal["coarse", "fine"] = "coarse"
    """Width of the bins of similarity ranks: fine bins double in width (1, 2, 3, 5, 9, ...), coarse ones begin at 1, 2,
    5 and 17."""
    memory_decay: float = Field(default=0.9, ge=0, lt=1)
    """Share of the class similarities that one epoch leaves as they were."""

    @property
    def refers_to_student(self) -> bool:
        """Whether the target depends on what the student has learned, so that one-hot labels come first."""
        return True


class FullMatrixTargetSettings(SteeredTargetSettings):
    """A matrix of logits that moves along a few fixed directions."""

    family: Literal["full-matrix"]


class SuperclassTargetSettings(SteeredTargetSettings):
    """The true-class mass of each superclass, and the share of the rest that stays within it."""

    family: Literal["superclass"]


@dataclass(frozen=True)
class TargetFamily:
    """A target family of another distribution, which its entry point of the group `tfkd_fast.targets` names."""

    settings: type[TargetBase]
    """The `[target]` table of the family, whose key `family` is a literal: the name of the entry point."""
    build: Callable[[Any, int, Superclasses | None], Target]
    """Builds the target from these settings, the number of classes, and the superclasses of the data set if any."""


TARGETS: Registry[TargetFamily] = Registry(
    "target family",
    "tfkd_fast.targets",
    TargetFamily,
    "tfkd_fast.steering.targets.TargetFamily",
    {},
)
"""The target families of other distributions by name."""

TargetSettings = Annotated[
    OneHotTargetSettings
    | LabelSmoothingTargetSettings
    | ScalarTargetSettings
    | RankBinnedTargetSettings
    | FullMatrixTargetSettings
    | SuperclassTargetSettings,
    Forms("family", TARGETS),
]
"""The `[target]` table."""

TARGETS.reserve([form_name("family", form) for form in get_args(get_args(TargetSettings)[0])])
