"""A run folder, read and checked: the recipe, every event of the log by its kind, and the summary once there is one.

Numbers that the log holds as null (JSON has no NaN) are NaN here. Top-1 and top-5 are percent, as in the files.
"""

import json
import math
import tomllib
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from tfkd_fast.errors import UserError
from tfkd_fast.runs.folder import RunFolder

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Record(BaseModel):
    """A part of the log. Keys that no reader needs are left aside, so that a newer log can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Start(Record):
    """What identifies a run."""

    version: str
    torch: str
    method: str
    dataset: str
    model: str
    seed: int
    epochs: int
    device: str
    device_name: str
    precision: str
    loader: str
    ops: str
    parameters: int
    train_images: int
    holdout_images: int
    classes: tuple[str, ...]
    candidates: int
    """The most that one interval trains."""
    teachers: tuple[str, ...] = ()
    """By the names of their run folders."""
    teachers_saw_holdout: bool | None = False
    """Whether one was trained on images that are held out here; None where that is not known."""
    steered_by_holdout: bool = False


class Holdout(Record):
    """One candidate on the held-out split, after an epoch."""

    top1: Number
    nll: Number
    calibrated_nll: Number
    temperature: Number
    ece: Number


class Epoch(Record):
    """One epoch of one candidate."""

    epoch: int
    """From 1."""
    candidate: int
    learning_rate: Number
    train_loss: Number
    train_top1: Number
    images_per_second: Number
    holdout: Holdout | None


class DecidedCandidate(Record):
    """What one candidate of an interval is taught with."""

    role: str
    action: tuple[Number, ...]
    true_mass: Number
    divergence: Number
    mass_by_rank: tuple[Number, ...]


class Decision(Record):
    """The targets of an interval's candidates."""

    interval: int
    first_epoch: int
    """From 1."""
    epochs: int
    action_names: tuple[str, ...]
    candidates: tuple[DecidedCandidate, ...]

    @property
    def last_epoch(self) -> int:
        return self.first_epoch + self.epochs - 1


class Selection(Record):
    """One ranking of N candidates by R criteria."""

    interval: int
    epoch: int
    """The interval's last, from 1."""
    aggregate: str
    criteria: tuple[str, ...]
    higher_is_better: tuple[bool, ...]
    values: tuple[tuple[Number, ...], ...]
    ranks: tuple[tuple[Number, ...], ...]
    scores: tuple[Number, ...]
    order: tuple[int, ...]
    winner: int


class Reward(Record):
    """What the controller made of an interval."""

    interval: int
    rewards: tuple[Number, ...]
    update: dict[str, Number] | None


class TeacherWeights(Record):
    """What each of M teachers counted for, as means over the images of an epoch; each adds up to 1."""

    epoch: int
    names: tuple[str, ...]
    logit_weights: tuple[Number, ...]
    feature_weights: tuple[Number, ...]
    updates: int
    """Of what weighs them, so far."""
    skipped: int
    """Updates that were left out, so far."""


class PathwayWeights(Record):
    """What each of K pathways, from features of the teacher to features of the student, counts for at the beginning of
    an epoch; 0 where it is not computed."""

    epoch: int
    names: tuple[str, ...]
    weights: tuple[Number, ...]


class Professor(Record):
    """What refines the predictions of a teacher, judged beside it by images that neither learned from."""

    teacher: str
    images: int
    """That it learned from."""
    teacher_error: Number
    """Percent of them, as they were shown, that the teacher got wrong."""
    kept_images: int
    """That both are judged by."""
    teacher_top1: Number
    professor_top1: Number
    margin: Number
    """Half of the 95 % interval of the difference."""
    spearman: Number
    """Rank correlation between the two, over the wrong classes."""
    verdict: str
    warning: str = ""


class Grade(Record):
    """A part of the run in which the first stages of the student learn some of the classes."""

    grade: int
    first_epoch: int
    """Both from 1."""
    epochs: int
    stages: int
    labels: tuple[int, ...]

    @property
    def last_epoch(self) -> int:
        return self.first_epoch + self.epochs - 1


class Groups(Record):
    """Held-out accuracy of each group of classes after an epoch."""

    epoch: int
    holdout_top1: tuple[Number, ...]
    """Percent; NaN before the grade of a group."""


class Resume(Record):
    """A new process went on from the end of an epoch."""

    epoch: int


KINDS: dict[str, type[Record]] = {
    "start": Start,
    "epoch": Epoch,
    "decision": Decision,
    "selection": Selection,
    "reward": Reward,
    "teachers": TeacherWeights,
    "pathways": PathwayWeights,
    "professor": Professor,
    "grade": Grade,
    "groups": Groups,
    "resume": Resume,
}
"""Kinds of events by name. One more, "finish", repeats summary.json."""


@dataclass(frozen=True)
class Run:
    """Everything that a run folder tells."""

    recipe_text: str
    recipe: dict[str, Any]
    start: Start
    epochs: list[Epoch]
    """By epoch, then by candidate."""
    decisions: list[Decision]
    selections: list[Selection]
    rewards: list[Reward]
    teacher_weights: list[TeacherWeights]
    pathway_weights: list[PathwayWeights]
    professors: list[Professor]
    grades: list[Grade]
    groups: list[Groups]
    resumes: list[Resume]
    seconds: float
    """From the start to the last event."""
    summary: dict[str, Any] | None
    """None while the run is unfinished."""

    @cached_property
    def student(self) -> list[Epoch]:
        """The lineage that survives, one record an epoch: of several candidates the one that was then selected, or
        candidate 0 where no selection followed (yet)."""
        lineage = []
        for epoch, records in groupby(self.epochs, key=lambda record: record.epoch):
            candidates = {record.candidate: record for record in records}
            selection = self._next_selection(epoch)
            survivor = selection.winner if selection and len(candidates) > 1 else 0
            lineage.append(candidates.get(survivor, candidates[min(candidates)]))
        return lineage

    @cached_property
    def rivals(self) -> list[list[Epoch]]:
        """The other candidates: one track for each and for each interval, from the parent that it started from."""
        student = {record.epoch: record for record in self.student}
        tracks: dict[tuple[int | None, int], list[Epoch]] = {}
        for record in self.epochs:
            if record.candidate != student[record.epoch].candidate:
                selection = self._next_selection(record.epoch)
                track = tracks.setdefault((selection.epoch if selection else None, record.candidate), [])
                if not track and record.epoch - 1 in student:
                    track.append(student[record.epoch - 1])
                track.append(record)
        return list(tracks.values())

    def _next_selection(self, epoch: int) -> Selection | None:
        """The selection that ends the interval of an epoch, if several candidates train in it."""
        following = bisect_left(self.selections, epoch, key=lambda selection: selection.epoch)
        return self.selections[following] if following < len(self.selections) else None

    @cached_property
    def winners(self) -> dict[int, int]:
        """Interval -> the candidate that it continued from, where there was a selection."""
        return {selection.interval: selection.winner for selection in self.selections}

    @cached_property
    def decided(self) -> list[Decision]:
        """The controller's own decisions: those after the warm-up, which is taught one-hot."""
        return [decision for decision in self.decisions if self.survivor(decision).role != "warm-up"]

    def survivor(self, decision: Decision) -> DecidedCandidate:
        """What the surviving student of an interval was taught with."""
        return decision.candidates[self.winners.get(decision.interval, 0)]


def read_run(run_folder: Path) -> Run:
    """Read a run folder; the run may be finished, unfinished or still going.

    The log's last line may have been cut off by a kill: it is then left out.

    Raises:
        UserError: the folder is no run folder, or one of its files is damaged; the file and the line are named.
    """
    folder = RunFolder(run_folder)
    folder.require_run()
    if not folder.metrics.is_file():
        raise UserError(f"{run_folder} has no {folder.metrics.name} yet: start the run first")
    events, seconds = _read_events(folder.metrics)
    if not events["start"]:
        raise UserError(f"{folder.metrics} has no start event: start the run again")
    recipe_text = folder.recipe.read_text()
    try:
        recipe = tomllib.loads(recipe_text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{folder.recipe} is damaged ({error}): restore it") from None
    try:
        summary = folder.read_summary()
    except ValueError as error:
        raise UserError(f"{folder.summary} is damaged ({error}): delete it to see the run as unfinished") from None
    return Run(
        recipe_text=recipe_text,
        recipe=recipe,
        start=events["start"][0],
        epochs=sorted(events["epoch"], key=lambda record: (record.epoch, record.candidate)),
        decisions=events["decision"],
        selections=events["selection"],
        rewards=events["reward"],
        teacher_weights=events["teachers"],
        pathway_weights=events["pathways"],
        professors=events["professor"],
        grades=events["grade"],
        groups=events["groups"],
        resumes=events["resume"],
        seconds=seconds,
        summary=summary,
    )


def _read_events(path: Path) -> tuple[dict[str, list[Any]], float]:
    """Records by kind, and the time of the last one."""
    events: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    seconds = 0.0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            event = json.loads(line)
            kind, seconds = event["event"], float(event["time"])
            if kind in KINDS:
                events[kind].append(KINDS[kind].model_validate(event))
        except (ValueError, TypeError, KeyError) as error:
            if not line.endswith(b"\n"):
                break  # the last line, cut off
            raise UserError(f"line {number} of {path} is damaged ({_reason(error)}): delete that line") from None
    return events, seconds


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    if isinstance(error, KeyError):
        return f"no {error}"
    return str(error)
