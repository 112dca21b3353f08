"""The state of a run between two epochs, as a checkpoint holds it."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from pydantic import TypeAdapter

from tfkd_fast.methods.base import Interval


@dataclass
class RunState:
    """The progress of a run, without its candidates and the state of its method."""

    epoch: int = 0
    """Number of epochs that are trained."""
    interval: Interval | None = None
    """The interval that is being trained; None between two intervals."""
    diverged: tuple[int, ...] = ()
    """The candidates that diverged in the interval that is being trained, and are left out of its selection."""
    alive: int = 1
    """Number of different candidates between two intervals."""
    student_epochs: int = 0
    """Number of trained epochs, summed over all candidates, those of cooldowns included."""
    images_trained: int = 0
    """Number of images of these epochs, without those of first steps that compile or capture."""
    best_epoch: int = 0
    """The epoch with the highest held-out top-1, counted from 1; 0 before any was judged."""
    best_top1: float = -1.0
    """Held-out top-1 after that epoch, a fraction."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of the run by activity, see `tfkd_fast.runs.log.PARTS`."""
    elapsed: float = 0.0
    """Seconds from the start of the run to the checkpoint, over all of its processes."""
    log_bytes: int = 0
    """Size of the log at the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The counterpart of `state_dict`.

        Raises:
            ValueError: for values that are none of a run.
        """
        return TypeAdapter(cls).validate_python(state)
