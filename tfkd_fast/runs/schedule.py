"""Optimiser and learning-rate settings, and the learning rate as a function of the progress of the run."""

import math
from typing import Annotated, Literal

from pydantic import Field

from tfkd_fast.settings import LARGEST, Forms, ReadIf, Settings


class OptimizerSettings(Settings):
    """The `[optimizer]` table: SGD with the reference recipe of RepDistiller (Tian et al., ICLR 2020)."""

    learning_rate: float = Field(default=0.05, gt=0, le=LARGEST)
    """Learning rate that the schedule multiplies."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of stochastic gradient descent."""
    weight_decay: float = Field(default=5e-4, ge=0, le=LARGEST)
    """Weight decay, added to the gradient as a multiple of every weight."""
    nesterov: Annotated[bool, ReadIf("momentum", bool, "momentum is above 0")] = False
    """Whether the momentum is that of Nesterov."""


class ScheduleBase(Settings):
    """The key that all schedules have."""

    name: str
    """Course of the learning rate over the run."""


class StepSchedule(ScheduleBase):
    """Multiply by `gamma` at each milestone, a fraction of the run: epochs 150, 180 and 210 of 240 (RepDistiller)."""

    name: Literal["step"] = "step"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.625, 0.75, 0.875)
    """Moments at which the learning rate falls, as shares of the run."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """Factor that multiplies the learning rate at each milestone."""

    def ratio(self, progress: float) -> float:
        """Learning rate over the initial one, at `progress` in [0, 1)."""
        return float(self.gamma ** sum(progress >= milestone for milestone in self.milestones))


class CosineSchedule(ScheduleBase):
    """Half a cosine from 1 to 0 (Loshchilov & Hutter, ICLR 2017, without restarts)."""

    name: Literal["cosine"]

    def ratio(self, progress: float) -> float:
        """Learning rate over the initial one, at `progress` in [0, 1)."""
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class OneCycleSchedule(ScheduleBase):
    """Linear rise from `start` to 1 over the first `warmup` of the run, then half a cosine to 0 (after Smith, 2018)."""

    name: Literal["one-cycle"]
    warmup: float = Field(default=0.2, gt=0, lt=1)
    """Share of the run over which the learning rate rises to its peak."""
    start: float = Field(default=0.04, ge=0, le=1)
    """Learning rate of the first step, as a share of the peak."""

    def ratio(self, progress: float) -> float:
        """Learning rate over the peak, at `progress` in [0, 1)."""
        if progress < self.warmup:
            return self.start + (1.0 - self.start) * progress / self.warmup
        return 0.5 * (1.0 + math.cos(math.pi * (progress - self.warmup) / (1.0 - self.warmup)))


ScheduleSettings = Annotated[StepSchedule | CosineSchedule | OneCycleSchedule, Forms("name")]
"""The `[schedule]` table."""
