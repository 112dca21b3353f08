"""The figures of a run as curves over epochs: which number of which event has which name, the same for all trackers."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tfkd_fast.events import (
    CandidatesAveraged,
    ControllerRewarded,
    EpochEnded,
    Event,
    GroupsJudged,
    HoldoutFigures,
    PathwaysWeighed,
    RunFinished,
    RunResumed,
    TargetsDecided,
    TeachersWeighed,
)

TESTED = ("test_", "best_test_", "ema_test_")
"""What the names of test figures begin with, in the last event of a run."""


class Point(NamedTuple):
    """A number that a run had after some of its epochs."""

    name: str
    """The name of the curve, such as "holdout_top1/candidate_0"."""
    value: float
    """A finite number, in the unit of the log."""
    epoch: int
    """Number of epochs that were trained before."""


class Curves:
    """Turns the events of a run, given in their order, into points."""

    def __init__(self) -> None:
        self._epoch = 0

    def points(self, event: Event) -> list[Point]:
        """The points that an event has: at its epoch, or where it names none, after those that have ended.

        A number that is not known has no point.
        """
        if isinstance(event, EpochEnded | RunResumed):
            self._epoch = event.epoch
        epoch = getattr(event, "epoch", self._epoch)
        return [Point(_plain(name), value, epoch) for name, value in named_scalars(event) if math.isfinite(value)]


def named_scalars(event: Event) -> Iterator[tuple[str, float]]:
    """The numbers of an event that make curves, by the names of the curves."""
    match event:
        case EpochEnded():
            for name, value in _of_epoch(event).items():
                yield f"{name}/candidate_{event.candidate}", value
        case CandidatesAveraged():
            for name, value in _held_out(event.holdout).items():
                yield f"{name}/average", value
        case TargetsDecided():
            yield from _numbered("true_mass/candidate", [target.true_mass for target in event.candidates])
            yield from _numbered("divergence/candidate", [target.divergence for target in event.candidates])
        case ControllerRewarded():
            yield from _numbered("reward/candidate", event.rewards)
        case TeachersWeighed():
            yield from _numbered("logit_weight/teacher", event.logit_weights)
            yield from _numbered("feature_weight/teacher", event.feature_weights)
        case PathwaysWeighed():
            yield from _numbered("weight/pathway", event.weights)
        case GroupsJudged():
            yield from _numbered("holdout_top1/group", event.holdout_top1)
        case RunFinished():
            for name, value in event.model_dump().items():
                if name.startswith(TESTED) and isinstance(value, float):
                    yield name, value


def _of_epoch(event: EpochEnded) -> dict[str, float]:
    figures = {
        "train_loss": event.train_loss,
        "train_top1": event.train_top1,
        "train_true_probability": event.true_probability,
        "train_entropy": event.entropy,
        "learning_rate": event.learning_rate,
        "images_per_second": event.images_per_second,
        "student_epochs": event.student_epochs or math.nan,  # 0 in logs that do not say
    }
    figures |= {f"loss_{name}": value for name, value in event.terms.items()}
    return figures | (_held_out(event.holdout) if event.holdout else {})


def _held_out(figures: HoldoutFigures) -> dict[str, float]:
    return {f"holdout_{name}": value for name, value in figures.model_dump().items()}


def _numbered(name: str, values: Sequence[float]) -> Iterator[tuple[str, float]]:
    """A curve for each of several like things, which are numbered because their names may be long, strange or equal."""
    return ((f"{name}_{number}", value) for number, value in enumerate(values))


def _plain(name: str) -> str:
    """A name of the characters that every tracker takes: a method may call a term of its loss anything."""
    return re.sub(r"[^\w.\- /]", "_", name)
