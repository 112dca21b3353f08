"""The interface of the students that an environment trains: figures and actions, no networks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tfkd_fast.steering.control.controller import Progress

BEST_QUALITY = 10.0
"""Quality of a student that is always right and sure."""

DIVERGENCE_PENALTY = -BEST_QUALITY
"""Reward of an interval in which a student's loss stops being finite (our choice): the return of the episode is then
below that of a student that learns nothing, whatever the student had gained before."""


def quality(progress: Progress) -> float:
    """Return the quality of a student, at most 10 (our choice).

    It is half the held-out top-1 in units of 10 points, plus half the distance of the calibrated held-out NLL below
    log C in units of 0.1 log C nats; the units are those of the observation. A student that guesses has 5 / C.
    """
    return 0.5 * BEST_QUALITY * (progress.holdout_top1 + 1.0 - progress.holdout_nll / math.log(progress.num_classes))


@dataclass(frozen=True)
class Snapshot:
    """The state of a student between two decisions."""

    epoch: int
    """Number of epochs that the student was trained for."""
    progress: Progress
    """Figures of the student."""
    divergence: float
    """Mean divergence of the one-hot label from the latest target, nats; see `TargetSummary.divergence`."""


class StudentFleet(Protocol):
    """P students that train side by side over one run, each with its own seed and its own actions."""

    @property
    def count(self) -> int:
        """The number of students P."""

    @property
    def action_names(self) -> tuple[str, ...]:
        """A >= 1 names, one for each number of an action; all zeros is the neutral action."""

    @property
    def epochs(self) -> int:
        """The number of epochs of a whole run."""

    def start(self, seeds: Sequence[int]) -> list[Snapshot]:
        """Start P new students of the given seeds, 0 .. 2**32 - 1, and train them up to the first decision."""

    def train(self, actions: Tensor) -> list[Snapshot | None]:
        """Train all students for one decision interval, student p under row p of `actions` (P,A) float32.

        Returns:
            P snapshots; None for a student whose loss is no longer finite. Then the run is over for all students, and
            those that did not diverge have the snapshot from before the interval.
        """
