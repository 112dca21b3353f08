"""How far a run has come, read from its log while another process writes it."""

from typing import NamedTuple

from tfkd_fast.events import EpochEnded, HoldoutFigures, RunDiverged, from_line
from tfkd_fast.runs.folder import RunFolder


class Reached(NamedTuple):
    """The latest finished epoch of a run."""

    epoch: int
    """Number of the epoch, counted from 1; 0 before the first one."""
    student_epochs: int
    """Number of epochs that were trained so far, summed over all candidates."""
    holdout_top1: float | None
    """Held-out top-1 of the best candidate after that epoch, in percent; None without held-out images."""


class RunProgress:
    """Follows the log of one run; each look reads what was added since the last one."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.metrics
        self._read = 0  # bytes
        self._rest = b""
        self._reached = Reached(0, 0, None)
        self.judged: dict[int, list[HoldoutFigures]] = {}
        """The held-out figures of the candidates after each epoch so far; those of the latest may not be complete."""
        self.divergence: str | None = None
        """Why the run ended before its last epoch; None where it did not diverge."""

    def look(self) -> Reached:
        """The latest epoch in the log by now; what cannot be read is left out."""
        try:
            if self._path.stat().st_size < self._read:  # cut back to a checkpoint
                self._read, self._rest, self.divergence = 0, b"", None
                self.judged.clear()
            with self._path.open("rb") as file:
                file.seek(self._read)
                added = file.read()
        except OSError:  # not there yet
            return self._reached
        self._read += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        for line in lines:
            self._take(line)
        return self._reached

    def _take(self, line: bytes) -> None:
        if b'"epoch"' not in line:
            return
        try:
            event = from_line(line).event
        except ValueError:
            return
        if isinstance(event, RunDiverged):
            self.divergence = event.reason
        if isinstance(event, EpochEnded):
            figures = [event.holdout] if event.holdout else []
            self.judged[event.epoch] = [*self.judged.get(event.epoch, []), *figures]
            top1 = event.holdout.top1 if event.holdout else None
            if event.epoch == self._reached.epoch and self._reached.holdout_top1 is not None and top1 is not None:
                top1 = max(top1, self._reached.holdout_top1)
            self._reached = Reached(event.epoch, event.student_epochs, top1)
