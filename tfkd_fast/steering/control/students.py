"""What an environment needs of the students that it lets somebody steer: numbers, no networks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tfkd_fast.steering.control.controller import Progress

BEST_QUALITY = 10.0

DIVERGENCE_PENALTY = -BEST_QUALITY
"""The reward of an interval in which a student's loss stops being finite: whatever it had gained before, the return is
below that of a student that learns nothing (our choice)."""


def quality(progress: Progress) -> float:
    """How good a student is, 10 at most (our choice): half held-out top-1 in units of 10 points, half by how much its
    calibrated held-out NLL is below log C in units of 0.1 log C nats, those of the observation.

    A student that guesses has 5 / C.
    """
    return 0.5 * BEST_QUALITY * (progress.holdout_top1 + 1.0 - progress.holdout_nll / math.log(progress.num_classes))


@dataclass(frozen=True)
class Snapshot:
    """A student between two decisions."""

    epoch: int  # how many it was trained for
    progress: Progress
    divergence: float  # of the target that it was taught with last from the one-hot label, nats


class StudentFleet(Protocol):
    """P students that train side by side over one run, each from a seed and under actions of its own."""

    @property
    def count(self) -> int:
        """P."""

    @property
    def action_names(self) -> tuple[str, ...]:
        """What each of A >= 1 numbers of an action steers; all zeros is the neutral action."""

    @property
    def epochs(self) -> int:
        """Of a whole run."""

    def start(self, seeds: Sequence[int]) -> list[Snapshot]:
        """P new students, as far as they train before the first decision; seeds lie in 0 .. 2**32 - 1."""

    def train(self, actions: Tensor) -> list[Snapshot | None]:
        """Train all for one decision interval, student p under action p of (P,A) float32.

        None for a student whose loss is no longer finite. Then the run is over for all; the others have the snapshot
        from before the interval.
        """
