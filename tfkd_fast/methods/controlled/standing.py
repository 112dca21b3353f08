"""The standing of a student between two intervals: what a controller observes of it, and what it is compared by."""

import math
from dataclasses import dataclass
from typing import Any, Self

from tfkd_fast.methods.base import Context, EpochResult, IntervalResult, TrainingStatistics
from tfkd_fast.steering.control import Progress


@dataclass(frozen=True)
class Standing:
    """A student at the end of an interval: what the next one is compared with."""

    training: TrainingStatistics
    top1: float
    """Held-out top-1, a fraction."""
    nll: float
    """Calibrated held-out negative log-likelihood, nats."""
    true_mass: float
    """Mean mass of the true class in the target that it was trained with."""
    nll_history: tuple[float, ...] = ()
    """Calibrated held-out negative log-likelihood after each epoch of its lineage, nats."""
    least_true_mass: float = 1.0
    """Least of `true_mass` so far."""

    @classmethod
    def untrained(cls, classes: int) -> Self:
        """The standing of a student that is as good as chance."""
        training = TrainingStatistics(math.log(classes), 1 / classes, 1 / classes, math.log(classes))
        return cls(training, 1 / classes, math.log(classes), true_mass=1.0)

    @classmethod
    def after(
        cls, before: "Standing", result: IntervalResult, true_mass: float, nll_history: tuple[float, ...] = ()
    ) -> Self:
        """The standing after an interval at whose beginning it was `before`, judged after a cooldown or by averaged
        weights where there are any, because the last iterate is noisy."""
        judged = result.after_cooldown or result.epoch_average or result.last
        top1, nll = (judged.top1, judged.calibrated_nll) if judged else (math.nan, math.nan)
        least = min(before.least_true_mass, true_mass)
        return cls(result.training, top1, nll, true_mass, nll_history, least)

    @classmethod
    def at_epoch(cls, before: "Standing", result: EpochResult, true_mass: float) -> Self:
        """The standing after an epoch within an interval, judged by averaged weights where there are any."""
        return cls.after(before, IntervalResult(result.training, result.holdout, result.epoch_average, None), true_mass)

    @classmethod
    def from_state_dict(cls, values: dict[str, Any]) -> Self:
        """The counterpart of `dataclasses.asdict`."""
        training, history = TrainingStatistics(**values["training"]), tuple(values["nll_history"])
        return cls(**values | {"training": training, "nll_history": history})


def progress_of(context: Context, epoch: int, now: Standing, before: Standing) -> Progress:
    """What a controller observes before the interval that starts at `epoch`: the student now, and an interval
    earlier."""
    return Progress(
        num_classes=context.num_classes,
        epoch_fraction=epoch / context.epochs,
        phase=context.phase(epoch),
        learning_rate_ratio=context.learning_rate_ratio(epoch),
        train_loss=now.training.loss,
        train_top1=now.training.top1,
        holdout_top1=now.top1,
        holdout_nll=now.nll,
        delta_top1=now.top1 - before.top1,
        delta_nll=now.nll - before.nll,
        entropy=now.training.entropy,
        true_probability=now.training.true_probability,
        true_mass=now.true_mass,
        least_true_mass=now.least_true_mass,
    )
