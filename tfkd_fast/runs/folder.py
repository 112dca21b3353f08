"""The folder of a run: the names of its files, and who may write where.

recipe.toml (resolved) · data.json (what the data set is known by) · convolutions.json (by which algorithms they are
computed) · metrics.jsonl (one event a line, flushed) · checkpoints/ · student.safetensors (last epoch) ·
best.safetensors (best epoch on the held-out split) · student-ema.safetensors (moving average of the
weights) · policy.safetensors (of a controller that has one) and other files of a method · summary.json · report.html ·
student.pt2, student.onnx and student-int8.onnx when exported, and their like · tensorboard/, wandb/ and trackers.json
(what the run is called in trackers) when asked for · replaced-run/ (the run that was there before, until this one has a
checkpoint) · lock.
"""

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tfkd_fast.data import DataIdentity
from tfkd_fast.errors import UserError
from tfkd_fast.files import (
    PART,
    from_checked_text,
    is_there,
    parse_toml,
    read_checked_json,
    read_record,
    read_text,
    reading,
    sync_folder,
    to_checked_json,
    to_checked_text,
    write_bytes,
)
from tfkd_fast.methods import METHODS
from tfkd_fast.runs.checkpoint import REMEDY, load_checkpoint, save_checkpoint
from tfkd_fast.runs.convolutions import ConvolutionRecord
from tfkd_fast.runs.lock import LOCK, lock_folder, refuse_if_busy
from tfkd_fast.strict_json import to_json

KEPT_CHECKPOINTS = 2
EXPORTS = (".pt2", ".onnx", "-int8.onnx")
"""What the names of exports have after that of the student's file."""
LIBRARY = "tfkd-fast"
"""What model cards call this package, as the Hugging Face Hub knows it."""
CHECKPOINT = re.compile(r"epoch-(\d+)\.ckpt")
"""The name of a checkpoint, with the number of epochs before it."""


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """The folder as somebody named it, for sentences."""
        self.place = place = path.absolute()
        """The same folder from wherever it is named: the code of a network may change the current folder."""
        self.recipe = place / "recipe.toml"
        self.next_recipe = place / "recipe.toml.next"  # while a run takes the place of another one
        self.data = place / "data.json"
        self.convolutions = place / "convolutions.json"
        self.metrics = place / "metrics.jsonl"
        self.checkpoints = place / "checkpoints"
        self.student = place / "student.safetensors"
        self.best = place / "best.safetensors"
        self.ema = place / "student-ema.safetensors"
        self.policy = place / "policy.safetensors"
        self.summary = place / "summary.json"
        self.report = place / "report.html"
        self.card = place / "README.md"  # of a run that was handed on
        self.tensorboard = place / "tensorboard"
        self.trackers = place / "trackers.json"
        self.generations = place / "generations.jsonl"  # of a search for a policy, which is no run

    @property
    def replaced(self) -> "RunFolder":
        """The run that was here before, as long as that of the folder has no checkpoint; usually there is none."""
        return RunFolder(self.place / "replaced-run")

    @property
    def resume_option(self) -> str:
        """The option of `train` that goes on with the run, as a shell takes it."""
        return f"--resume {shlex.quote(str(self.path))}"

    def lock(self) -> AbstractContextManager[list[int]]:
        """Context manager that makes the folder and locks it while the block runs; see `lock_folder`."""
        return lock_folder(self.place)

    def refuse_if_taken(self, *, overwrite: bool = False, place: str = "--out") -> None:
        """Raise UserError unless a run may begin here: the folder is empty or not there, or with `overwrite` has a run.

        What others keep in a folder is no run: it is refused in any case.

        Args:
            overwrite: whether a run may be there.
            place: the option or argument that names the folder, for messages.
        """
        if not self.place.exists():
            return
        if not self.place.is_dir():
            raise UserError(f"{self.path} is a file: choose another {place}")
        refuse_if_busy(self.place)
        if self.generations.exists():
            raise UserError(f"{self.path} holds the search for a policy: choose another {place}")
        if not self._holds_run():
            refuse_if_foreign(self.place, ours={LOCK, self.recipe.name + PART}, place=place)
        elif self.summary.exists() and not overwrite:
            raise UserError(f"{self.path} already holds a finished run: choose another {place}, or pass --overwrite")
        elif not overwrite:
            raise UserError(
                f"{self.path} holds an unfinished run: go on with {self.resume_option}, or pass --overwrite"
            )

    def refuse_if_read(self, sources: Iterable[Path]) -> None:
        """Raise UserError if a run that begins here would replace one of the files and folders that it reads."""
        ours = {os.path.realpath(path) for path in (self.place, self.recipe, *self._written())}
        for source in filter(is_there, sources):
            place = os.path.realpath(source)
            if place in ours or Path(place).is_relative_to(os.path.realpath(self.replaced.place)):
                raise UserError(f"the run would replace {source}, which it reads: choose another --out")

    def create(self, recipe_text: str) -> None:
        """Make the folder, and put the files of an earlier run aside; files that are no part of a run stay.

        When the process is killed meanwhile, the folder holds the earlier run, untouched, or the new one, once
        `finish_replacing` was called.
        """
        try:
            self.place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
        recipe = self.next_recipe if self.recipe.exists() else self.recipe
        write_bytes(recipe, to_checked_text(recipe_text).encode())
        self.finish_replacing()

    def finish_replacing(self) -> None:
        """Where another run has begun to take the place of that in the folder, put what is left of the old one aside.

        A run that has no checkpoint, because it has replaced another one itself that is still there, is deleted.
        """
        if not self.next_recipe.exists():
            return
        replaced = self.replaced
        try:
            if not replaced.recipe.exists():
                for file in filter(is_there, self._written()):
                    place = replaced.place / file.relative_to(self.place)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(file, place)  # also where checkpoints/ is on another disk
                write_bytes(replaced.recipe, self.recipe.read_bytes())  # the last: from now on it is whole
            self._delete_written()
            self.next_recipe.replace(self.recipe)
            sync_folder(self.place)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None

    def drop_replaced(self) -> None:
        """Delete the run that was here before."""
        replaced = self.replaced
        if not is_there(replaced.place):
            return
        with contextlib.suppress(OSError):  # the next checkpoint tries again
            replaced._delete_written()
            replaced.recipe.unlink(missing_ok=True)
            for folder in (replaced.checkpoints, replaced.place):
                folder.rmdir()

    def _delete_written(self) -> None:
        for file in self._written():
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not there, or somebody else has files in it
            self.tensorboard.rmdir()

    def _written(self) -> Iterator[Path]:
        """Every file that a run, a report or an export may have written, but for the recipe, which marks the folder as
        that of a run until the next recipe takes its place."""
        records = [self.summary, self.data, self.convolutions, self.metrics, self.trackers]
        students = [self.student, self.best, self.ema]
        exports = [file.with_name(file.stem + ending) for file in students for ending in EXPORTS]
        own = [*records, *students, *exports, self.report]
        for file in (*own, *self._of_methods()):
            yield file
            yield file.with_name(file.name + PART)
        if self._has_model_card():
            yield self.card
        yield from self.checkpoint_files()
        yield from self.checkpoints.glob(f"epoch-*.ckpt{PART}")
        yield from self.tensorboard.glob("events.out.tfevents.*")

    def _has_model_card(self) -> bool:
        """Whether README.md is the model card of a run that was handed on, and not a text of somebody else."""
        try:
            text = read_text(self.card, "the model card", "")
        except UserError:
            return False
        return f"library_name: {to_json(LIBRARY)}" in text.partition("\n---\n")[0].splitlines()

    def _of_methods(self) -> list[Path]:
        """What methods may add to the folder."""
        return [self.place / name for entry in METHODS.usable() for name in entry.build.FILES]

    def handed_on(self) -> list[Path]:
        """The files beside the recipe that others get of a finished run, whether or not they are there: its model card,
        records and weights, as Markdown, JSON and safetensors."""
        records = [self.data, self.convolutions, self.metrics, self.summary]
        own = {path: None for path in self._of_methods() if path.suffix == ".safetensors"}
        return [self.card, *records, self.student, self.best, self.ema, *own]

    @property
    def lacks_report_only(self) -> bool:
        """Whether the run is finished but for its report, before which its process ended."""
        return self.summary.exists() and not (self.report.exists() or self.next_recipe.exists())

    def holds_unfinished(self, recipe_text: str) -> bool:
        """Whether the folder holds a run by this recipe that has not come to its end."""
        begun = self.next_recipe if self.next_recipe.exists() else self.recipe
        if not is_there(begun) or (self.summary.exists() and begun is self.recipe):
            return False
        with reading(begun, "the recipe", "restore it"):
            return from_checked_text(read_text(begun, "the recipe", "restore it")) == recipe_text

    def _holds_run(self) -> bool:
        """Whether recipe.toml is that of a run; other programs have files of this name, too."""
        try:
            text = read_text(self.recipe, "recipe", "")
            return isinstance(parse_toml(text, self.recipe, "recipe", "").get("method"), str)
        except UserError:
            return False

    def require_run(self) -> None:
        """Raise UserError unless the folder holds a run."""
        if self.next_recipe.exists():
            raise UserError(f"{self.path} holds a run that was stopped when it began: go on with {self.resume_option}")
        if not is_there(self.recipe):
            raise UserError(f"{self.path} is no run folder: it has no recipe.toml")

    def read_recipe_text(self) -> str:
        """The text of recipe.toml, without its checksum.

        Raises:
            UserError: the folder holds no run, or its recipe cannot be read or is not what was written.
        """
        self.require_run()
        remedy = "restore it; if you changed it on purpose, delete its first line"
        text = read_text(self.recipe, "the recipe", remedy)
        with reading(self.recipe, "the recipe", remedy):
            return from_checked_text(text)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file that a method adds to the folder."""
        write_bytes(self.place / name, content)

    def save_checkpoint(self, epoch: int, state: dict[str, Any]) -> Path:
        """Write the state after `epoch` epochs; drop all but the newest two, and the run that was here before."""
        path = self.checkpoints / f"epoch-{epoch:05d}.ckpt"
        with contextlib.suppress(OSError):  # the write says what is wrong
            self.checkpoints.mkdir(exist_ok=True)
        save_checkpoint(path, state)
        parts = self.checkpoints.glob(f"epoch-*.ckpt{PART}")  # of a process that was killed
        for old in (*self.checkpoint_files()[:-KEPT_CHECKPOINTS], *parts):
            with contextlib.suppress(OSError):  # the next one tries again
                old.unlink()
        self.drop_replaced()
        return path

    def checkpoint_files(self) -> list[Path]:
        """The checkpoints that there are, the oldest first."""
        numbered = ((CHECKPOINT.fullmatch(path.name), path) for path in self.checkpoints.glob("epoch-*.ckpt"))
        return [path for _, path in sorted((int(name[1]), path) for name, path in numbered if name)]

    def newest_state(self) -> dict[str, Any] | None:
        """The newest checkpoint's state, or None before the first one."""
        found = self.checkpoint_files()
        return load_checkpoint(found[-1]) if found else None

    def reading_newest(self) -> AbstractContextManager[None]:
        """Context manager for a block that goes on from the newest checkpoint's state: what does not fit is refused."""
        return reading(self.checkpoint_files()[-1], "the checkpoint", REMEDY)

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        """Write nested plain values as indented JSON with a checksum, atomically; NaN and infinity become null."""
        write_bytes(path, to_checked_json(values).encode())

    def read_data(self) -> DataIdentity | None:
        """What is known of the data set that the run was begun with; None for runs of earlier versions.

        Raises:
            UserError: data.json cannot be read, or is damaged.
        """
        if not is_there(self.data):
            return None
        kind, remedy = "the record of the data set", "restore it, or train the run anew with --overwrite"
        return read_record(self.data, kind, remedy, DataIdentity)

    def write_data(self, identity: DataIdentity) -> None:
        """Record the data set that the run begins with."""
        self.write_json(self.data, identity.model_dump(mode="json"))

    def read_convolutions(self) -> ConvolutionRecord | None:
        """The algorithms of the run's convolutions; None for runs of earlier versions.

        Raises:
            UserError: convolutions.json cannot be read, or is damaged.
        """
        if not is_there(self.convolutions):
            return None
        kind, remedy = "the record of convolutions", "restore it, or delete it to have them measured again"
        return read_record(self.convolutions, kind, remedy, ConvolutionRecord)

    def write_convolutions(self, record: ConvolutionRecord) -> None:
        """Record the algorithms of the run's convolutions."""
        self.write_json(self.convolutions, record.model_dump(mode="json"))

    def tracked_as(self, tracker: str) -> str | None:
        """What the run is called in a tracker; None where it has not begun there.

        Raises:
            UserError: trackers.json cannot be read, or is damaged.
        """
        return self._tracked().get(tracker)

    def track_as(self, tracker: str, name: str) -> None:
        """Record what the run is called in a tracker, to go on there after a break."""
        self.write_json(self.trackers, self._tracked() | {tracker: name})

    def _tracked(self) -> dict[str, Any]:
        if not is_there(self.trackers):
            return {}
        remedy = "restore it, or delete it to begin new runs in the trackers"
        return read_checked_json(self.trackers, "the record of trackers", remedy)

    def read_summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None.

        Raises:
            UserError: it cannot be read, or is damaged.
        """
        if not is_there(self.summary):
            return None
        remedy = "restore it from the last line of metrics.jsonl, or delete it to see the run as unfinished"
        return read_checked_json(self.summary, "the summary", remedy)


def refuse_if_foreign(folder: Path, *, ours: set[str], place: str = "--out") -> None:
    """Raise UserError, which advises to name another `place`, if the folder has an entry that is not one of ours."""
    try:
        foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in ours)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    if foreign:
        raise UserError(
            f"{folder} is not empty and holds nothing of tfkd-fast ({foreign[0]} is in it): choose another {place}"
        )
