"""The folder of a run: the names of its files, and who may write where.

recipe.toml (resolved) · metrics.jsonl (one event a line, flushed) · checkpoints/ · student.safetensors (last epoch) ·
best.safetensors (best epoch on the held-out split) · policy.safetensors (of a controller that has one) · summary.json ·
report.html · tensorboard/ when asked for.
"""

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from tfkd_fast.errors import UserError
from tfkd_fast.runs.checkpoint import load_checkpoint, save_checkpoint, write_atomically

KEPT_CHECKPOINTS = 2


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.student = path / "student.safetensors"
        self.best = path / "best.safetensors"
        self.policy = path / "policy.safetensors"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"

    def refuse_if_taken(self) -> None:
        """Raise UserError if the folder holds a run, or is no folder."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose another --out")
        if self.summary.exists():
            raise UserError(f"{self.path} already holds a finished run: choose another --out, or pass --overwrite")
        if self.recipe.exists():
            raise UserError(
                f"{self.path} holds an unfinished run: go on with --resume {self.path}, or pass --overwrite"
            )

    def create(self, recipe_text: str) -> None:
        """Make the folder, without what an earlier run left there; files that are no part of a run stay."""
        try:
            for file in (self.summary, self.metrics, self.student, self.best, self.policy, self.report, self.recipe):
                file.unlink(missing_ok=True)
            for folder in (self.checkpoints, self.tensorboard):
                shutil.rmtree(folder, ignore_errors=True)
            self.checkpoints.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
        write_atomically(self.recipe, lambda file: file.write(recipe_text.encode()))

    def require_run(self) -> None:
        """Raise UserError unless the folder holds a run."""
        if not self.recipe.is_file():
            raise UserError(f"{self.path} is no run folder: it has no recipe.toml")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write what a method adds to the folder."""
        write_atomically(self.path / name, lambda file: file.write(content))

    def save_checkpoint(self, epoch: int, state: dict[str, Any]) -> Path:
        """Write the state after `epoch` epochs and drop all but the newest two."""
        path = self.checkpoints / f"epoch-{epoch:05d}.ckpt"
        save_checkpoint(path, state)
        for old in self.checkpoint_files()[:-KEPT_CHECKPOINTS]:
            with contextlib.suppress(OSError):  # the next one tries again
                old.unlink()
        return path

    def checkpoint_files(self) -> list[Path]:
        """The checkpoints that there are, the oldest first."""
        return sorted(self.checkpoints.glob("epoch-*.ckpt"))

    def newest_state(self) -> dict[str, Any] | None:
        """The newest checkpoint's state, or None before the first one."""
        found = self.checkpoint_files()
        return load_checkpoint(found[-1]) if found else None

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        """Write nested plain values as indented JSON, atomically; NaN and infinity become null."""
        text = json.dumps(finite(values), indent=2) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))

    def read_summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None."""
        return json.loads(self.summary.read_text()) if self.summary.exists() else None


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
