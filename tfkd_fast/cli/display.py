"""The display of a run: a line for every epoch and decision, and on a terminal a live status below them."""

import math
import time
from operator import itemgetter
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tfkd_fast.events import (
    CandidateSelected,
    CandidateTarget,
    EpochEnded,
    Event,
    GradeStarted,
    LoaderChosen,
    PathwaysWeighed,
    ProfessorJudged,
    RunFacts,
    RunFinished,
    RunResumed,
    RunStarted,
    TargetsDecided,
    TeachersWeighed,
)
from tfkd_fast.ops.backends import why_slow
from tfkd_fast.runs.log import Listener

REFRESH = 0.1
"""Seconds between two movements of the bar."""
MOST_PATHWAYS = 3
"""The most pathways that the line of an epoch names."""


class Display(Listener):
    """Prints a run: a line for every epoch and decision, and a status bar where the console is a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[status]}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
        self._task: TaskID | None = None
        self._facts: RunFacts | None = None
        self._latest: EpochEnded | None = None
        self._targets: tuple[CandidateTarget, ...] = ()  # of the last decision
        self._ranking = ""
        self._images = 0
        self._share = 1.0  # of the images to fit that an epoch shows; fewer where only some classes are taught
        self._epoch_started = self._bar_updated = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def batch(self, images: int) -> None:
        """Move the bar, a few times a second."""
        self._images += images
        now = time.perf_counter()
        if self._bar and self._task is not None and now - self._bar_updated > REFRESH:
            self._bar_updated = now
            speed = self._images / (now - self._epoch_started)
            self._bar.update(
                self._task,
                description=f"epoch {self._epochs_done + 1}/{self._epochs}",
                total=self._images_per_epoch(),
                completed=self._images,
                status=self._status(speed),
            )

    @property
    def status(self) -> str:
        """The text beside the bar; empty without a terminal."""
        return str(self._bar.tasks[0].fields["status"]) if self._bar and self._bar.tasks else ""

    def event(self, event: Event) -> None:
        """Print the line of an event; a kind that has none only moves the clock."""
        match event:
            case RunStarted():
                self._show_start(event)
            case RunResumed():
                self._facts = event
                self._print(f"going on with {event.method} on {event.dataset} after epoch {event.epoch}")
                if event.log_incomplete:
                    self._print(
                        "lines of metrics.jsonl from before that are missing: the student is not affected, "
                        "the report will lack them"
                    )
                self._start_bar()
            case LoaderChosen():
                self._show_loader(event)
            case ProfessorJudged():
                self._show_professor(event)
            case GradeStarted():
                self._show_grade(event)
            case PathwaysWeighed():
                self._show_pathways(event)
            case TeachersWeighed():
                self._show_teachers(event)
            case TargetsDecided():
                self._show_decision(event)
            case EpochEnded():
                self._show_epoch(event)
            case CandidateSelected():
                self._show_selection(event)
            case RunFinished():
                self._show_finish(event)
        self._epoch_started = time.perf_counter()  # the time between epochs is not training

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _show_start(self, start: RunStarted) -> None:
        self._facts = start
        self._print(
            f"{start.method} · {start.model} ({start.parameters:,} parameters) · {start.dataset}: "
            f"{start.train_images:,} images to fit, {start.holdout_images:,} held out · seed {start.seed}"
        )
        self._print(f"{start.device_name} · {start.precision} · loader {start.loader} · operators {start.ops}")
        if start.ops == "reference" and (slow := why_slow()):
            self._print(slow)
        if start.parts:
            self._print(start.parts)
        if start.reading:
            self._print(f"of each image file: {start.reading}")
        if start.teachers:
            saw = " · trained on images that are held out here" if start.teachers_saw_holdout else ""
            self._print(f"taught by {', '.join(start.teachers)}{saw}")
        self._start_bar()

    def _show_loader(self, loader: LoaderChosen) -> None:
        if loader.images_per_second:
            speeds = (f"{name} {speed:,.0f}" for name, speed in loader.images_per_second.items())
            self._print(f"loader {loader.chosen}, by images/s: {' · '.join(speeds)}")

    def _show_professor(self, professor: ProfessorJudged) -> None:
        correlation = professor.spearman
        correlation_text = "" if math.isnan(correlation) else f" · rank correlation with it {correlation:.2f}"
        self._print(f"professor of {professor.teacher}: {professor.verdict}{correlation_text}")
        if professor.warning:
            self._print(f"warning: {professor.warning}")

    def _show_grade(self, grade: GradeStarted) -> None:
        self._print(
            f"grade {grade.grade} · epochs {grade.first_epoch} to {grade.last_epoch} · {grade.stages} stages · "
            f"{len(grade.labels)} classes"
        )

    def _show_pathways(self, pathways: PathwaysWeighed) -> None:
        weights = sorted(zip(pathways.names, pathways.weights, strict=True), key=itemgetter(1), reverse=True)
        used = [f"{name} {weight:.3f}" for name, weight in weights if weight > 0]
        self._print(" · ".join([f"pathways {len(used)} of {len(weights)}", *used[:MOST_PATHWAYS]]))

    def _show_teachers(self, teachers: TeachersWeighed) -> None:
        predictions, features = (
            " ".join(f"{name} {weight:.2f}" for name, weight in zip(teachers.names, weights, strict=True))
            for weights in (teachers.logit_weights, teachers.feature_weights)
        )
        self._print(f"  weights of predictions {predictions} · of features {features}")

    def _show_decision(self, decision: TargetsDecided) -> None:
        self._targets = decision.candidates
        self._print(f"decision {decision.interval} · epochs {decision.first_epoch} to {decision.last_epoch}")
        for slot, candidate in enumerate(decision.candidates):
            action = " ".join(f"{value:+.2f}" for value in candidate.action)
            self._print(
                f"  candidate {slot} · {candidate.role:7} · action [{action}] · "
                f"true-class mass {candidate.true_mass:.3f}"
            )

    def _show_epoch(self, epoch: EpochEnded) -> None:
        if self._images:  # the first candidate of the epoch
            self._share *= self._images / self._images_per_epoch()
        self._latest, self._images = epoch, 0
        holdout = epoch.holdout
        judged = f"held-out {holdout.top1:5.2f} % · NLL {holdout.nll:.3f}" if holdout else "no held-out images"
        slot = f" · candidate {epoch.candidate}" if self._facts and self._facts.candidates > 1 else ""
        self._print(
            f"epoch {epoch.epoch}/{self._epochs}{slot} · loss {epoch.train_loss:.4f} · "
            f"train {epoch.train_top1:5.2f} % · {judged} · lr {epoch.learning_rate:.4g} · "
            f"{epoch.images_per_second:,.0f} images/s"
        )

    def _show_selection(self, selection: CandidateSelected) -> None:
        slots = range(len(selection.scores))
        width = max(map(len, selection.criteria))
        self._print(f"ranking after epoch {selection.epoch}" + "".join(f"{f'c{slot}':>13}" for slot in slots))
        for column, name in enumerate(selection.criteria):
            cells = (f"{selection.values[s][column]:.4g} ({selection.ranks[s][column]:g})" for s in slots)
            self._print(f"  {name:{width}} " + " ".join(f"{cell:>12}" for cell in cells))
        self._print(f"  {'score':{width}} " + " ".join(f"{score:>12g}" for score in selection.scores))
        self._print(f"  winner: candidate {selection.winner}")
        self._ranking = " > ".join(f"c{slot}" for slot in selection.order)

    def _show_finish(self, finish: RunFinished) -> None:
        if self._bar:
            self._bar.stop()
        judged = "" if finish.holdout_top1 is None else f"held-out {finish.holdout_top1:.2f} %, "
        self._print(
            f"{finish.student_epochs} student-epochs in {finish.seconds:.0f} s · "
            f"{finish.images_per_second:,.0f} images/s · last epoch: {judged}"
            f"test {finish.test_top1:.2f} %, NLL {finish.test_nll:.3f}, ECE {finish.test_ece:.3f}"
        )

    def _start_bar(self) -> None:
        if self._bar:
            self._task = self._bar.add_task("", total=None, status="")
            self._bar.start()

    def _images_per_epoch(self) -> float:
        """Images that an epoch shows to all candidates of the present interval together."""
        images = self._facts.train_images if self._facts else 0
        return self._share * images * max(1, len(self._targets))

    @property
    def _epochs(self) -> int:
        """Number of epochs of the run."""
        return self._facts.epochs if self._facts else 0

    @property
    def _epochs_done(self) -> int:
        return self._latest.epoch if self._latest else 0

    def _status(self, speed: float) -> str:
        """Speed, loss, held-out accuracy, target, ranking and time left, as far as they are known."""
        parts = [f"{speed:,.0f} images/s"]
        if self._latest:
            parts.append(f"loss {self._latest.train_loss:.3f}")
            if self._latest.holdout:
                parts.append(f"held-out {self._latest.holdout.top1:.1f} %")
        if self._targets:
            parts.append("true mass " + "/".join(f"{target.true_mass:.2f}" for target in self._targets))
        if self._ranking:
            parts.append(self._ranking)
        epochs_left = self._epochs - self._epochs_done
        left = int(max(0.0, epochs_left * self._images_per_epoch() - self._images) / speed)
        parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
        return " · ".join(parts)
