"""What is planned to be trained, in words, and the time that is left at the speed of the latest epochs."""

from collections import deque

LATEST = 10
"""Epochs whose speed counts: it changes over a run, with the images that are shown and the layers that are trained."""

MINUTE, HOUR, DAY = 60, 3600, 86400


def plan_words(epochs: int, student_epochs: int) -> str:
    """The plan of a run, with its cost where that is more than its epochs."""
    plan = f"{epochs:,} epoch{'s' * (epochs > 1)}"
    return plan if student_epochs <= epochs else f"{plan}, up to {student_epochs:,} student-epochs"


def duration_words(seconds: float) -> str:
    """A duration to about two digits, such as "45 s", "38 min", "2 h 10 min" or "3 d 4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * MINUTE:
        return f"{seconds / MINUTE:.0f} min"
    large, small, names = (HOUR, MINUTE, ("h", "min")) if seconds < 2 * DAY else (DAY, HOUR, ("d", "h"))
    whole, rest = divmod(round(seconds / small), large // small)
    return f"{whole} {names[0]} {rest} {names[1]}"


class Pace:
    """The time left of what is planned, in units such as student-epochs, by how long the latest of them took."""

    def __init__(
        self, planned: float, finished: float, now: float, *, latest: int | None = LATEST, least: float = 1
    ) -> None:
        """
        Args:
            planned: number of units.
            finished: number of units that are finished already.
            now: the time, in seconds of any clock.
            latest: how many of the latest calls of `advance` the speed is measured over; None for all of them.
            least: how many units the speed is measured over at least: as many as are worked on side by side, which
                may all be finished at about the same time.
        """
        self.planned = planned
        """Number of units in all."""
        self._least = least
        self._marks = deque([(now, finished)], maxlen=None if latest is None else 1 + latest)

    @property
    def finished(self) -> float:
        """Number of finished units."""
        return self._marks[-1][1]

    def advance(self, finished: float, now: float) -> None:
        """Take note of how many units are finished by now."""
        if finished > self.finished:
            self._marks.append((now, finished))

    def pause(self, seconds: float) -> None:
        """Leave out seconds since the last units that went into something else."""
        self._marks = deque(((time + seconds, units) for time, units in self._marks), maxlen=self._marks.maxlen)

    def seconds_left(self, finished: float | None = None) -> float | None:
        """Seconds until all units are finished, by those of `finished` units if more are by now; None where too few
        were measured."""
        (started, before), (latest, after) = self._marks[0], self._marks[-1]
        if after - before < self._least:
            return None
        return max(0.0, self.planned - max(after, finished or 0.0)) * (latest - started) / (after - before)


def left_words(pace: Pace | None) -> str:
    """The time that is left in words; empty where it is not known."""
    left = pace.seconds_left() if pace else None
    return "" if left is None else duration_words(left)
