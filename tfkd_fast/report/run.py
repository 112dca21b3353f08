"""A run folder, read and checked: the recipe, the events of the log by kind, and the summary once there is one."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from tfkd_fast.errors import UserError
from tfkd_fast.events import (
    CandidateDiverged,
    CandidateSelected,
    CandidateTarget,
    ControllerRewarded,
    EpochEnded,
    Event,
    GradeStarted,
    GroupsJudged,
    LogLine,
    PathwaysWeighed,
    ProfessorJudged,
    RunDiverged,
    RunFinished,
    RunResumed,
    RunStarted,
    StudentExamined,
    TargetsDecided,
    TeachersWeighed,
)
from tfkd_fast.files import is_there, parse_toml
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import read_log

EventT = TypeVar("EventT", bound=Event)
WeighedT = TypeVar("WeighedT", TeachersWeighed, PathwaysWeighed)


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run folder."""

    recipe_text: str
    recipe: dict[str, Any]
    start: RunStarted
    epochs: list[EpochEnded]
    """Epochs of all candidates, in the order of epochs, then of candidates."""
    decisions: list[TargetsDecided]
    selections: list[CandidateSelected]
    diverged: list[CandidateDiverged]
    """Candidates that were left out of a selection because they diverged."""
    end: RunDiverged | None
    """Why the run ended before its last epoch; None where it did not, or was stopped."""
    rewards: list[ControllerRewarded]
    teacher_weights: list[TeachersWeighed]
    pathway_weights: list[PathwaysWeighed]
    professors: list[ProfessorJudged]
    grades: list[GradeStarted]
    groups: list[GroupsJudged]
    resumes: list[RunResumed]
    examination: StudentExamined | None
    """The test of the student by class and confidence; None in logs of older versions, and of an unfinished run."""
    seconds: float
    """Seconds from the start of the run to its last event."""
    lost_lines: int
    """Number of lines that were damaged and left empty."""
    summary: dict[str, Any] | None
    """The summary of the run; None while it is unfinished."""
    cut: bool
    """Whether the run is finished and its log lacks the end."""

    @cached_property
    def student(self) -> list[EpochEnded]:
        """The lineage that survives, one record an epoch: of several candidates the best one of the selection that
        followed, or candidate 0 where none did (yet)."""
        lineage = []
        for epoch, records in groupby(self.epochs, key=lambda record: record.epoch):
            candidates = {record.candidate: record for record in records}
            selection = self._next_selection(epoch)
            survivor = self.winners[selection.interval] if selection and len(candidates) > 1 else 0
            lineage.append(candidates.get(survivor, candidates[min(candidates)]))
        return lineage

    @cached_property
    def rivals(self) -> list[list[EpochEnded]]:
        """The other candidates: one track for each and for each interval, from the parent that it started from."""
        student = {record.epoch: record for record in self.student}
        tracks: dict[tuple[int | None, int], list[EpochEnded]] = {}
        for record in self.epochs:
            if record.candidate != student[record.epoch].candidate:
                selection = self._next_selection(record.epoch)
                track = tracks.setdefault((selection.epoch if selection else None, record.candidate), [])
                if not track and record.epoch - 1 in student:
                    track.append(student[record.epoch - 1])
                track.append(record)
        return list(tracks.values())

    def _next_selection(self, epoch: int) -> CandidateSelected | None:
        """The selection that ends the interval of an epoch, if several candidates train in it."""
        following = bisect_left(self.selections, epoch, key=lambda selection: selection.epoch)
        return self.selections[following] if following < len(self.selections) else None

    @cached_property
    def winners(self) -> dict[int, int]:
        """Interval -> the candidate from which the student descends, or the best one of those of whose average it does.

        Where several survive a selection, it is the one that later selections chose from.
        """
        winners, slot = {}, 0
        for selection in reversed(self.selections):
            several = len(selection.survivors) > 1
            slot = selection.survivors[slot % len(selection.survivors)] if several else selection.best_candidate
            winners[selection.interval] = slot
        return winners

    @cached_property
    def controller_decisions(self) -> list[TargetsDecided]:
        """The controller's own decisions, which begin after the warm-up on one-hot targets."""
        return [decision for decision in self.decisions if self.survivor(decision).role != "warm-up"]

    def survivor(self, decision: TargetsDecided) -> CandidateTarget:
        """The target of the surviving student of an interval."""
        return decision.candidates[self.winners.get(decision.interval, 0)]


def read_run(run_folder: Path) -> RunRecord:
    """Read a run folder; the run may be finished, unfinished or still going.

    The log's last line may have been cut off by a kill: it is then left out.

    Raises:
        UserError: the folder is no run folder, or one of its files is damaged; the file and the line are named.
    """
    folder = RunFolder(run_folder)
    folder.require_run()
    if not is_there(folder.metrics):
        raise UserError(f"{run_folder} has no {folder.metrics.name} yet: start the run first")
    summary = folder.read_summary()  # before the log, whose last line is written first
    lines = read_log(folder.metrics)
    starts = _events_of(RunStarted, lines)
    if not starts:
        raise UserError(f"{folder.metrics} has no start event: start the run again")
    recipe_text = folder.read_recipe_text()
    return RunRecord(
        recipe_text=recipe_text,
        recipe=parse_toml(recipe_text, folder.recipe, "the recipe", "restore it"),
        start=starts[0],
        epochs=sorted(_events_of(EpochEnded, lines), key=lambda event: (event.epoch, event.candidate)),
        decisions=_events_of(TargetsDecided, lines),
        selections=_events_of(CandidateSelected, lines),
        diverged=_events_of(CandidateDiverged, lines),
        end=next(iter(_events_of(RunDiverged, lines)), None),
        rewards=_events_of(ControllerRewarded, lines),
        teacher_weights=weights_of(TeachersWeighed, lines, folder.metrics),
        pathway_weights=weights_of(PathwaysWeighed, lines, folder.metrics),
        professors=_events_of(ProfessorJudged, lines),
        grades=_events_of(GradeStarted, lines),
        groups=_events_of(GroupsJudged, lines),
        resumes=_events_of(RunResumed, lines),
        examination=next(iter(_events_of(StudentExamined, lines)), None) if summary else None,
        seconds=lines[-1].seconds,
        lost_lines=(lines[-1].number or len(lines)) - len(lines),
        summary=summary,
        cut=summary is not None and not isinstance(lines[-1].event, RunFinished),
    )


def _events_of(kind: type[EventT], lines: Iterable[LogLine]) -> list[EventT]:
    return [line.event for line in lines if isinstance(line.event, kind)]


def weights_of(kind: type[WeighedT], lines: Iterable[LogLine], log: Path) -> list[WeighedT]:
    """The weights of the same teachers or pathways, in the order of epochs."""
    events = sorted(_events_of(kind, lines), key=lambda event: event.epoch)
    if any(event.names != events[0].names for event in events):
        raise UserError(f"the log {log} has weights of other {kind.kind} in some epochs: restore it")
    return events
