"""What holds for one interval of training: its epochs and candidates, and what the method wants in them."""

from collections.abc import Sequence
from dataclasses import dataclass

from tfkd_fast.events import Event


@dataclass(frozen=True)
class Interval:
    """Epochs `first_epoch` to `first_epoch + epochs - 1` (0-based), trained by each of `candidates`."""

    first_epoch: int
    epochs: int
    candidates: int

    @property
    def end(self) -> int:
        """The 0-based epoch after the last one of the interval."""
        return self.first_epoch + self.epochs


@dataclass(frozen=True)
class Plan:
    """The next interval, and what to write into the log about it."""

    interval: Interval
    events: Sequence[Event] = ()
    learning_rate_factors: tuple[float, ...] | None = None
    """On top of the schedule, one a candidate; None is 1 for all."""
    labels: tuple[int, ...] | None = None
    """Only images of these are trained on; None: of all."""
    schedule: tuple[int, int] | None = None
    """First epoch and end (0-based) of a learning-rate schedule of its own, which starts with momenta of zero; None:
    that of the run."""
