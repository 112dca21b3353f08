"""TensorBoard events beside metrics.jsonl, for a recipe that sets `tensorboard = true`."""

import importlib.util

from tfkd_fast.errors import UserError
from tfkd_fast.events import (
    ControllerRewarded,
    EpochEnded,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    TargetsDecided,
)
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import Listener


class TensorBoardWriter(Listener):
    """Writes curves of every candidate: training, held-out figures, targets and rewards, over epochs."""

    def __init__(self, folder: RunFolder) -> None:
        """Write into the folder tensorboard/ of a run.

        Raises:
            UserError: TensorBoard is not installed.
        """
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError("tensorboard = true needs TensorBoard: pip install 'tfkd-fast[logging]'")
        self._folder = folder.tensorboard
        self._epoch = 0

    def event(self, event: Event) -> None:
        """Write the points of the curves that the event has."""
        match event:
            case RunStarted():
                self._open(0)
            case RunResumed():
                self._open(event.epoch)
            case EpochEnded():
                self._epoch = event.epoch
                self._write_epoch(event)
                self._writer.flush()
            case TargetsDecided():
                for slot, candidate in enumerate(event.candidates):
                    self._scalar("true_mass", slot, candidate.true_mass)
                    self._scalar("divergence", slot, candidate.divergence)
            case ControllerRewarded():
                for slot, reward in enumerate(event.rewards):
                    self._scalar("reward", slot, reward)
            case RunFinished():
                self._writer.close()

    def _open(self, epoch: int) -> None:
        """Go on after so many epochs; what was written of later ones, before a kill, is shown no more."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and an extra

        self._epoch = epoch
        self._writer = SummaryWriter(str(self._folder), purge_step=epoch + 1 if epoch else 0)

    def _write_epoch(self, event: EpochEnded) -> None:
        figures = {
            "train_loss": event.train_loss,
            "train_top1": event.train_top1,
            "learning_rate": event.learning_rate,
            "images_per_second": event.images_per_second,
            **{f"loss_{name}": value for name, value in event.terms.items()},
        }
        if event.holdout is not None:
            figures |= {f"holdout_{name}": value for name, value in event.holdout.model_dump().items()}
        for name, value in figures.items():
            self._scalar(name, event.candidate, value)

    def _scalar(self, name: str, candidate: int, value: float) -> None:
        self._writer.add_scalar(f"{name}/candidate_{candidate}", value, self._epoch)
