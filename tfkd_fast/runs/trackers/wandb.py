"""Weights & Biases: a run there for a run here, which its environment variables (WANDB_MODE, ...) tell more of."""

import os
import warnings
from collections.abc import Sequence

from tfkd_fast.errors import Notice
from tfkd_fast.runs.trackers.scalars import Point
from tfkd_fast.runs.trackers.tracker import Tracker

PROJECT = "tfkd-fast"
"""The project that runs are in where WANDB_PROJECT names none."""


class WeightsAndBiases(Tracker):
    """Logs to W&B, with the recipe as its config; its files are in the folder wandb/ of the run."""

    title, package, extra = "W&B", "wandb", "wandb"

    def begin(self, epoch: int) -> None:
        """Begin a run of W&B, or go on with the one that the run folder knows. W&B keeps what it was told of epochs
        after the checkpoint, which then come twice with the same values."""
        import wandb  # slow to import, and an extra

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", self.folder.place.resolve().name),
            id=self.folder.tracked_as("wandb"),
            resume="allow",
            reinit="create_new",  # another run of this process may have one, too
            dir=os.environ.get("WANDB_DIR", str(self.folder.place)),
            config=self.recipe,
            settings=wandb.Settings(silent=True, console="off", save_code=False),
        )
        self.folder.track_as("wandb", self._run.id)
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        if not self._run.offline and self._run.url:
            warnings.warn(Notice(f"the run is shown at {self._run.url}"), stacklevel=2)

    def write(self, points: Sequence[Point]) -> None:
        """Log points in one step."""
        self._run.log({"epoch": points[0].epoch} | {point.name: point.value for point in points})

    def end(self, *, finished: bool) -> None:
        """Finish the run of W&B; one that may go on later counts as failed there until it does."""
        self._run.finish(exit_code=0 if finished else 1)
