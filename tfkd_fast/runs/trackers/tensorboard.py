"""TensorBoard: events in the folder tensorboard/ of a run."""

from collections.abc import Sequence

from tfkd_fast.runs.trackers.scalars import Point
from tfkd_fast.runs.trackers.tracker import Tracker


class TensorBoard(Tracker):
    """Writes curves for TensorBoard, whose steps are epochs."""

    title, package, extra = "TensorBoard", "tensorboard", "logging"

    def begin(self, epoch: int) -> None:
        """Go on after so many epochs; what was written of later ones, before a kill, is shown no more."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and an extra

        self._writer = SummaryWriter(str(self.folder.tensorboard), purge_step=epoch + 1 if epoch else 0)

    def write(self, points: Sequence[Point]) -> None:
        """Write points; they are in the file when this returns."""
        for point in points:
            self._writer.add_scalar(point.name, point.value, point.epoch)
        self._writer.flush()

    def end(self, *, finished: bool) -> None:
        """Close the file of events; nothing more is written to it."""
        self._writer.close()
