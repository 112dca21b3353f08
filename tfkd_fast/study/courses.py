"""How runs went, epoch by epoch, read from their logs: what the curves of a comparison are made of."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tfkd_fast.errors import UserError, printable
from tfkd_fast.report import RunRecord, read_run
from tfkd_fast.report.steering import TargetMass, target_mass
from tfkd_fast.runs.folder import RunFolder


@dataclass(frozen=True)
class Course:
    """The course of one run, finished or not. Lists have an entry for each epoch of the student, NaN where unknown."""

    planned: int
    """Number of epochs that the run is to have."""
    finished: bool
    end: str
    """Why the run ended before its last epoch; empty where it did not, or was stopped."""
    epochs: list[int]
    holdout_top1: list[float]
    """Held-out top-1 in percent."""
    holdout_nll: list[float]
    """Held-out negative log-likelihood, nats."""
    true_mass: list[tuple[float, float]]
    """Ends of intervals in epochs, with the true-class mass that the student was taught with; empty where nothing
    was decided."""
    target: TargetMass | None
    """The mass on the other classes over time; None where nothing was decided."""


class Courses:
    """Reads the courses of runs, those of finished runs once."""

    def __init__(self) -> None:
        self._finished: dict[Path, tuple[int, Course]] = {}
        self.unreadable: dict[Path, str] = {}
        """Why a run folder that was read last has no course, in a sentence."""

    def read(self, folder: RunFolder) -> Course | None:
        """The course of the run in a folder; None where none has begun there, or its log cannot be read."""
        self.unreadable.pop(folder.path, None)
        if not folder.metrics.exists():
            return None
        try:
            stamp = folder.metrics.stat().st_mtime_ns
            known = self._finished.get(folder.path)
            if known is not None and known[0] == stamp:
                return known[1]
            course = _course_of(read_run(folder.path))
        except UserError as error:
            self.unreadable[folder.path] = str(error)
            return None
        except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
            self.unreadable[folder.path] = f"the events of {folder.metrics} contradict each other: {error}"
            return None
        if course.finished:
            self._finished[folder.path] = (stamp, course)
        return course


def _course_of(run: RunRecord) -> Course:
    targets = [(decision, run.survivor(decision).true_mass) for decision in run.decisions]
    return Course(
        planned=run.start.epochs,
        finished=run.summary is not None,
        end=printable(run.end.reason) if run.end else "",
        epochs=[record.epoch for record in run.student],
        holdout_top1=[record.holdout.top1 if record.holdout else math.nan for record in run.student],
        holdout_nll=[record.holdout.nll if record.holdout else math.nan for record in run.student],
        true_mass=[
            (edge, mass)
            for decision, mass in targets
            for edge in (decision.first_epoch - 0.5, decision.last_epoch + 0.5)
        ],
        target=target_mass(run),
    )


CoursesByRow = Mapping[str, Mapping[int, Course]]
"""Row -> seed -> the course of the run."""


def mean_course(courses: Mapping[int, Course], name: str) -> tuple[list[int], list[float]]:
    """Epochs, and a figure of a row there: the mean over the finished runs, or over all where none is finished, as far
    as every one of them has come."""
    chosen = [course for course in courses.values() if course.finished] or list(courses.values())
    epochs = sorted(set.intersection(*(set(course.epochs) for course in chosen))) if chosen else []
    values = [
        sum(getattr(course, name)[course.epochs.index(epoch)] for course in chosen) / len(chosen) for epoch in epochs
    ]
    return epochs, values
