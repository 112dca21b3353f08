"""TensorBoard events beside metrics.jsonl, for a recipe that sets `tensorboard = true`."""

import importlib.util
from typing import Any

from tfkd_fast.errors import UserError
from tfkd_fast.runs.folder import RunFolder


class TensorBoardWriter:
    """An engine listener: curves of every candidate, the target's true-class mass, and the rewards."""

    def __init__(self, folder: RunFolder) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError("tensorboard = true needs TensorBoard: pip install 'tfkd-fast[logging]'")
        self._folder = folder.tensorboard
        self._epoch = 0

    def batch(self, images: int) -> None:
        """Nothing is written inside an epoch."""

    def event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "start" | "resume":
                from torch.utils.tensorboard import SummaryWriter  # slow to import, and an extra

                self._writer = SummaryWriter(str(self._folder))
            case "epoch":
                self._epoch = event["epoch"]
                candidate = f"candidate_{event['candidate']}"
                for name in ("train_loss", "train_top1", "learning_rate", "images_per_second"):
                    self._scalar(f"{name}/{candidate}", event[name])
                for name, value in (event["holdout"] or {}).items():
                    self._scalar(f"holdout_{name}/{candidate}", value)
            case "decision":
                for slot, candidate in enumerate(event["candidates"]):
                    self._scalar(f"true_mass/candidate_{slot}", candidate["true_mass"])
                    self._scalar(f"divergence/candidate_{slot}", candidate["divergence"])
            case "reward":
                for slot, reward in enumerate(event["rewards"]):
                    self._scalar(f"reward/candidate_{slot}", reward)
            case "finish":
                self._writer.close()

    def _scalar(self, name: str, value: float) -> None:
        self._writer.add_scalar(name, value, self._epoch)
