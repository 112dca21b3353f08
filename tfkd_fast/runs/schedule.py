"""The `[schedule]` table: the learning rate as a function of the progress of the run."""

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from itertools import accumulate
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch.optim import lr_scheduler

from tfkd_fast.errors import nearest
from tfkd_fast.settings import LARGEST, Forms, ReadIf, Settings
from tfkd_fast.strict_json import to_json


class ScheduleBase(Settings):
    """The keys that all schedules have."""

    name: str
    """Course of the learning rate over the run."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the run over which the learning rate rises along a straight line, as a factor on the schedule."""
    start: Annotated[float, ReadIf("warmup", bool, "warmup is above 0")] = Field(default=0.04, ge=0, le=1)
    """Learning rate of the first step, as a share of what the schedule alone would give."""

    def ratio(self, progress: float, *, epochs: int = 1, learning_rate: float = 1.0) -> float:
        """Learning rate over that of the optimiser, at `progress` in [0, 1).

        Args:
            progress: the share of the run that has passed.
            epochs: length of the run, on which only the form `torch` depends.
            learning_rate: that of the optimiser, on which only the form `torch` depends.
        """
        course = self._course(progress, epochs, learning_rate)
        if progress < self.warmup:
            return (self.start + (1.0 - self.start) * progress / self.warmup) * course
        return course

    def _course(self, progress: float, epochs: int, learning_rate: float) -> float:
        """The ratio without the warm-up."""
        raise NotImplementedError

    def fault(self, epochs: int, learning_rate: float) -> str | None:
        """What is wrong with the schedule for a run of these epochs and learning rate, as a clause; None if nothing."""
        return None


class StepSchedule(ScheduleBase):
    """Multiply by `gamma` at each milestone, a fraction of the run: epochs 150, 180 and 210 of 240 (RepDistiller)."""

    name: Literal["step"] = "step"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.625, 0.75, 0.875)
    """Moments at which the learning rate falls, as shares of the run."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """Factor that multiplies the learning rate at each milestone."""

    def _course(self, progress: float, epochs: int, learning_rate: float) -> float:
        return float(self.gamma ** sum(progress >= milestone for milestone in self.milestones))


class CosineSchedule(ScheduleBase):
    """Half a cosine from 1 to 0 (Loshchilov & Hutter, ICLR 2017, without restarts)."""

    name: Literal["cosine"]

    def _course(self, progress: float, epochs: int, learning_rate: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class OneCycleSchedule(ScheduleBase):
    """Linear rise from `start` to 1 over the first `warmup` of the run, then half a cosine to 0 (after Smith, 2018)."""

    name: Literal["one-cycle"]
    warmup: float = Field(default=0.2, gt=0, lt=1)
    """Share of the run over which the learning rate rises to its peak."""

    def _course(self, progress: float, epochs: int, learning_rate: float) -> float:
        if progress < self.warmup:
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (progress - self.warmup) / (1.0 - self.warmup)))


def phases(ratio: Callable[[int], float], epochs: int) -> Callable[[int], float]:
    """Return how far a run is by its learning rates, 0..1, as a function of the number of epochs that have passed.

    It is the moment of a one-cycle run, as a share of it, by which as great a share of its learning rates has passed:
    that run has as much left to learn (our choice). For a one-cycle run itself it is the share of the epochs. Where the
    rates do not sum to a positive number it is 0 throughout.

    Args:
        ratio: the learning rate at the start of a 0-based epoch over that of the optimiser.
        epochs: length of the run, 1 at least.
    """
    cycle = OneCycleSchedule(name="one-cycle")

    @cache
    def moments() -> list[float]:
        own = list(accumulate((ratio(epoch) for epoch in range(epochs)), initial=0.0))
        its = list(accumulate((cycle.ratio(epoch / epochs) for epoch in range(epochs)), initial=0.0))
        if not 0.0 < own[-1] < math.inf:
            return [0.0] * (epochs + 1)
        passed = [amount / own[-1] * its[-1] for amount in own]
        return np.interp(passed, its, [epoch / epochs for epoch in range(epochs + 1)]).tolist()

    return lambda epoch: moments()[epoch]


SCHEDULERS: dict[str, type[lr_scheduler.LRScheduler]] = {
    name: found
    for name in lr_scheduler.__all__
    if issubclass(found := getattr(lr_scheduler, name), lr_scheduler.LRScheduler)
}
"""The schedulers of torch by name."""

REFUSED = {
    "LRScheduler": "is the base of all schedulers",
    "ReduceLROnPlateau": "reads a metric after every epoch, and learning rates are fixed before a run",
    "LambdaLR": "is made of a function, which a recipe cannot hold",
    "MultiplicativeLR": "is made of a function, which a recipe cannot hold",
    "SequentialLR": "is made of other schedulers, which a recipe cannot hold",
    "ChainedScheduler": "is made of other schedulers, which a recipe cannot hold",
}
"""Why a scheduler of torch cannot be used, by its name."""


def _known_scheduler(name: str) -> str:
    """The name of a scheduler of torch, without its module."""
    name = name.removeprefix("torch.optim.lr_scheduler.")
    usable = SCHEDULERS.keys() - REFUSED.keys()
    if name in REFUSED:
        raise ValueError(f"torch's {name} {REFUSED[name]}: choose from {', '.join(sorted(usable))}")
    if name not in usable:
        raise ValueError(f"there is no such scheduler in torch.optim.lr_scheduler: {nearest(name, usable)}")
    return name


Number = Annotated[int, Field(ge=-1_000_000_000, le=1_000_000_000)] | Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class TorchSchedule(ScheduleBase):
    """Any scheduler of torch.optim.lr_scheduler that needs no metric, taken through all of its steps before the run."""

    name: Literal["torch"]
    scheduler: Annotated[str, AfterValidator(_known_scheduler)]
    """Class in torch.optim.lr_scheduler, such as CosineAnnealingWarmRestarts."""
    arguments: dict[str, bool | Number | str | list[Number]] = Field(default_factory=dict)
    """Arguments of the class by name, without the optimiser."""
    per_epoch: int = Field(default=1, ge=1, le=100_000)
    """Number of steps of the scheduler in an epoch."""

    def _course(self, progress: float, epochs: int, learning_rate: float) -> float:
        rates = self._rates(epochs, learning_rate)
        step = int(progress * len(rates) + 1e-9)  # a step begins on its number, not just below
        return rates[min(step, len(rates) - 1)] / learning_rate  # a run ends with the rate of its last step

    def fault(self, epochs: int, learning_rate: float) -> str | None:
        try:
            self._rates(epochs, learning_rate)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            return f"{self.scheduler} of torch refuses its arguments ({' '.join(str(error).split())})"
        return None

    def _rates(self, epochs: int, learning_rate: float) -> tuple[float, ...]:
        return _sample(self.scheduler, to_json(self.arguments), epochs * self.per_epoch, learning_rate)


@cache
def _sample(scheduler: str, arguments: str, steps: int, learning_rate: float) -> tuple[float, ...]:
    """The learning rates of so many steps of a scheduler of torch; `arguments` are a JSON object.

    Raises:
        ValueError: they are not all finite, or the scheduler changes the momentum, too.
        TypeError: the scheduler has no such arguments.
    """
    own: Mapping[str, Any] = json.loads(arguments)
    momentum = 0.5
    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=learning_rate, momentum=momentum)
    (group,) = optimizer.param_groups
    stepped, rates = SCHEDULERS[scheduler](optimizer, **own), []
    for _ in range(steps):
        rates.append(float(group["lr"]))
        if group["momentum"] != momentum:
            raise ValueError("it changes the momentum, too, which stays as it is here: set cycle_momentum to false")
        if not 0.0 <= rates[-1] < math.inf:
            raise ValueError(f"learning rate {rates[-1]} in step {len(rates)}")
        optimizer.step()
        if len(rates) < steps:
            stepped.step()
    return tuple(rates)


ScheduleSettings = Annotated[StepSchedule | CosineSchedule | OneCycleSchedule | TorchSchedule, Forms("name")]
"""The `[schedule]` table."""
