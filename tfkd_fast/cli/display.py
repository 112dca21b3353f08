"""The display of a run: some twenty lines over its epochs, and on a terminal a block below them that is updated."""

import math
import time
from operator import itemgetter
from typing import Self

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tfkd_fast.cli.pace import Pace, duration_words, plan_words
from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.events import (
    CandidateDiverged,
    CandidatesAveraged,
    CandidateSelected,
    CandidateTarget,
    ConvolutionsChosen,
    EpochEnded,
    Event,
    GradeStarted,
    LoaderChosen,
    PathwaysWeighed,
    ProcessesJoined,
    ProfessorJudged,
    RunFacts,
    RunFinished,
    RunResumed,
    RunStarted,
    StepsCompiled,
    StoppedEarly,
    TargetsDecided,
    TeachersWeighed,
)
from tfkd_fast.ops.backends import why_slow
from tfkd_fast.runs.log import Listener

REFRESH = 0.2
"""Seconds between two changes of the block."""
LINES = 20
"""Lines about epochs that a run prints, evenly spread over its epochs, and one about the first."""
BAR = 20
"""Columns that the bar takes."""
MOST_PATHWAYS = 3
"""The most pathways that a line names."""


class Display(Listener):
    """Prints a run. Each epoch of each candidate is in metrics.jsonl; here a line stands for several of them."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        self._terminal = terminal or Terminal(optional=True)
        self._live: Live | None = None
        if self._terminal.is_live:
            self._live = Live(console=self._terminal, auto_refresh=False, transient=True)
        self._facts: RunFacts | None = None
        self._pace: Pace | None = None  # from the first batch on
        self._finished = 0  # student-epochs before this process
        self._epochs: list[EpochEnded] = []  # the latest epoch of each candidate
        self._targets: tuple[CandidateTarget, ...] = ()  # of the last decision
        self._selection: CandidateSelected | None = None
        self._weights = ""  # of teachers or pathways
        self._images = 0  # of the present epoch
        self._line_due = self._time_is_known = False
        self._event_ended = self._changed = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_epoch()
        if self._live:
            self._live.stop()

    def batch(self, images: int) -> None:
        """Count the images, and change the block a few times a second."""
        self._end_epoch()
        if self._pace is None:
            planned = self._facts.planned_student_epochs if self._facts else 0
            self._pace = Pace(planned, self._finished, self._event_ended)
        self._images += images
        if self._live and time.perf_counter() - self._changed > REFRESH:
            self._refresh()

    def event(self, event: Event) -> None:
        """Print what there is to say about an event; most of them change the block only."""
        match event:
            case RunStarted():
                self._show_start(event)
            case RunResumed():
                self._show_resume(event)
            case ProcessesJoined():
                part = "candidates of its own" if event.share == "candidates" else f"a part of every {event.share}"
                self._terminal.say(f"{event.count} processes, each with {part}")
            case LoaderChosen():
                self._show_loader(event)
            case ConvolutionsChosen():
                self._show_convolutions(event)
            case ProfessorJudged():
                self._show_professor(event)
            case GradeStarted():
                self._end_epoch()
                self._show_grade(event)
            case StepsCompiled():
                if self._pace:
                    self._pace.pause(event.seconds)
            case PathwaysWeighed():
                self._weights = pathway_words(event)
            case TeachersWeighed():
                self._weights = teacher_words(event)
            case TargetsDecided():
                self._end_epoch()
                self._targets = event.candidates
            case EpochEnded():
                self._take_epoch(event)
            case CandidateDiverged():
                self._end_epoch()
                self._terminal.say(f"candidate {event.candidate} is left out from here on: {event.reason}")
            case CandidateSelected():
                self._selection = event
            case CandidatesAveraged():
                self._end_epoch()
                slots = " ".join(f"c{slot}" for slot in event.candidates)
                self._terminal.say(f"  goes on with the average of {slots}: held-out {event.holdout.top1:.1f} %")
            case StoppedEarly():
                self._end_epoch()
                self._terminal.say(
                    f"ended after epoch {event.epoch}: the held-out top-1 has not risen since epoch {event.best_epoch}"
                )
            case RunFinished():
                self._end_epoch()
                self._show_finish(event)
        self._event_ended = time.perf_counter()  # the time between epochs is not training

    def status(self) -> str:
        """The speed and the time left, as far as they are known."""
        passed = time.perf_counter() - self._event_ended
        speed = self._images / passed if passed > 0 else 0.0
        parts = [f"{speed:,.0f} images/s"] if self._images else []
        if (left := self._seconds_left(speed)) is not None:
            parts.append(f"{duration_words(left)} left")
        return " · ".join(parts)

    # Lines.

    def _show_start(self, start: RunStarted) -> None:
        self._facts = start
        say = self._terminal.say
        say(
            f"{start.method} · {start.model} ({start.parameters:,} parameters) · {start.dataset}: "
            f"{start.train_images:,} images to fit, {start.holdout_images:,} held out · seed {start.seed}"
        )
        say(f"{start.device_name} · {start.precision} · loader {start.loader} · operators {start.ops}")
        if start.ops == "reference" and (slow := why_slow()):
            say(slow)
        if start.parts:
            say(start.parts)
        if start.reading:
            say(f"of each image file: {start.reading}")
        if start.augmentation:
            say(f"of each training image: {start.augmentation}")
        if start.teachers:
            saw = " · trained on images that are held out here" if start.teachers_saw_holdout else ""
            figures = start.teachers_top1 or (math.nan,) * len(start.teachers)
            say(f"taught by {', '.join(map(_teacher_words, start.teachers, figures))}{saw}")
            for name in start.teachers_at_chance:
                say(f"warning: the teacher {name} is no better than chance: the student can learn nothing good from it")
        say(f"plan: {plan_words(start.epochs, start.planned_student_epochs)}; the time is measured in the first epoch")
        self._start_block()

    def _show_resume(self, resume: RunResumed) -> None:
        self._facts, self._finished = resume, resume.student_epochs
        say = self._terminal.say
        say(f"going on with {resume.method} on {resume.dataset} after epoch {resume.epoch}")
        if resume.log_incomplete:
            say(
                "lines of metrics.jsonl from before that are missing: the student is not affected, the report will "
                "lack them"
            )
        say(f"plan: {plan_words(resume.epochs, resume.planned_student_epochs)}, {self._finished:,} of these trained")
        self._start_block()

    def _show_loader(self, loader: LoaderChosen) -> None:
        if loader.images_per_second:
            speeds = (f"{name} {speed:,.0f}" for name, speed in loader.images_per_second.items())
            self._terminal.say(f"loader {loader.chosen}, by images/s: {' · '.join(speeds)}")

    def _show_convolutions(self, chosen: ConvolutionsChosen) -> None:
        passes = " · ".join(f"{name} {count}" for name, count in chosen.passes.items())
        measured = f"measured in {chosen.seconds:.1f} s" if chosen.seconds else "measured before"
        self._terminal.say(f"convolutions, passes by algorithm: {passes} · {measured}")

    def _show_professor(self, professor: ProfessorJudged) -> None:
        correlation = professor.spearman
        correlation_text = "" if math.isnan(correlation) else f" · rank correlation with it {correlation:.2f}"
        self._terminal.say(f"professor of {professor.teacher}: {professor.verdict}{correlation_text}")
        if professor.warning:
            self._terminal.say(f"warning: {professor.warning}")

    def _show_grade(self, grade: GradeStarted) -> None:
        self._terminal.say(
            f"grade {grade.grade} · epochs {grade.first_epoch} to {grade.last_epoch} · {grade.stages} stages · "
            f"{len(grade.labels)} classes"
        )

    def _show_finish(self, finish: RunFinished) -> None:
        if self._live:
            self._live.stop()
        figures = [] if finish.holdout_top1 is None else [f"held-out {finish.holdout_top1:.2f} %"]
        tested = f"test {finish.test_top1:.2f} %, NLL {finish.test_nll:.3f}, ECE {finish.test_ece:.3f}"
        figures.append(tested if math.isfinite(finish.test_top1) else "not tested")
        self._terminal.say(
            f"{finish.student_epochs} student-epochs in {finish.seconds:.0f} s · "
            f"{finish.images_per_second:,.0f} images/s · last epoch: {', '.join(figures)}"
        )
        if finish.ema_test_top1 is not None:
            judged = "" if finish.ema_holdout_top1 is None else f"held-out {finish.ema_holdout_top1:.2f} %, "
            self._terminal.say(f"moving average of the weights: {judged}test {finish.ema_test_top1:.2f} %")

    def _take_epoch(self, epoch: EpochEnded) -> None:
        """Take in the epoch of one candidate; those of the others follow at once."""
        if not self._epochs or self._epochs[0].epoch != epoch.epoch:
            self._epochs, self._images, self._line_due = [], 0, True
            if self._pace:
                self._pace.advance(epoch.student_epochs, time.perf_counter())
        self._epochs.append(epoch)

    def _end_epoch(self) -> None:
        """Print the line of the latest epoch if one is due, once all that belongs to the epoch is known."""
        if not self._line_due or self._facts is None:
            return
        self._line_due = False
        number, epochs = self._epochs[0].epoch, self._facts.epochs
        if not self._time_is_known and (left := self._seconds_left()) is not None:
            self._time_is_known = True
            plan = plan_words(epochs, self._facts.planned_student_epochs)
            what = "" if number == 1 else " left"
            self._terminal.say(f"plan: {plan}, about {duration_words(left)}{what} at this speed")
        if number == 1 or number * LINES // epochs > (number - 1) * LINES // epochs:
            self._terminal.say(self._epoch_line(number, epochs))
            if self._weights:
                self._terminal.say(f"  {self._weights}")
        if self._live:
            self._refresh()

    def _epoch_line(self, number: int, epochs: int) -> str:
        """The figures of the candidate that is best by now; what a narrow terminal has no room for is left out."""
        count, selection = len(self._epochs), self._selection
        is_winner = selection is not None and selection.epoch == number
        best = selection.best_candidate if selection and is_winner else max(range(count), key=self._held_out)
        epoch = self._epochs[best]
        parts = [f"epoch {number}/{epochs}", f"loss {epoch.train_loss:.3f}", f"train {epoch.train_top1:.1f} %"]
        more = []
        if epoch.holdout:
            parts.append(f"held-out {epoch.holdout.top1:.1f} %")
            more.append(f"NLL {epoch.holdout.nll:.3f}")
        if count > 1:
            more.append(f"{'winner' if is_winner else 'best'} c{best} of {count}")
        if best < len(self._targets):
            more.append(f"true-class mass {self._targets[best].true_mass:.3f}")
        left = self._seconds_left()
        ending = [] if left is None or number == epochs else [f"{duration_words(left)} left"]
        whole, short = (" · ".join(line) for line in (parts + more + ending, parts + ending))
        return whole if not self._terminal.is_terminal or cell_len(whole) <= self._terminal.width else short

    def _held_out(self, slot: int) -> float:
        """Held-out top-1 of a candidate; without held-out images, minus the loss that it was trained to. The lowest
        for one that diverged."""
        epoch = self._epochs[slot]
        figure = epoch.holdout.top1 if epoch.holdout else -epoch.train_loss
        return -math.inf if math.isnan(figure) else figure

    # The block.

    def _start_block(self) -> None:
        if self._live:
            self._live.start()

    def _refresh(self) -> None:
        self._changed = time.perf_counter()
        if self._live and self._live.is_started:
            self._live.update(self._block(), refresh=True)

    def _block(self) -> RenderableType:
        """The bar of the whole run, and the latest figures of every candidate."""
        facts = self._facts
        if facts is None or self._pace is None:
            return Text()
        number = self._epochs[0].epoch if self._epochs else 0
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(f"epoch {min(facts.epochs, number + 1)}/{facts.epochs}", no_wrap=True),
            ProgressBar(total=self._pace.planned, completed=self._units(), width=BAR),
            Text(self.status()),
        )
        parts: list[RenderableType] = [bar]
        if self._epochs:
            parts.append(self._candidates())
        if self._selection:
            parts.append(
                Text(
                    f"ranking after epoch {self._selection.epoch}: "
                    + " > ".join(map(self._selection.name_of, self._selection.order))
                )
            )
        if self._weights:
            parts.append(Text(self._weights))
        return Group(*parts)

    def _candidates(self) -> Table:
        """The figures of every candidate after the latest epoch."""
        steered = bool(self._targets)
        table = Table.grid(padding=(0, 2))
        headings = [f"epoch {self._epochs[0].epoch}", "loss", "train %", "held-out %", "NLL"]
        for number, heading in enumerate([*headings, *(["true mass", "role"] if steered else [])]):
            table.add_column(heading, justify="left" if number == 0 or heading == "role" else "right", no_wrap=True)
        table.show_header = True
        for slot, epoch in enumerate(self._epochs):
            judged = (f"{epoch.holdout.top1:.2f}", f"{epoch.holdout.nll:.3f}") if epoch.holdout else ("", "")
            row = [f"c{slot}", f"{epoch.train_loss:.4f}", f"{epoch.train_top1:.2f}", *judged]
            if slot < len(self._targets):
                row += [f"{self._targets[slot].true_mass:.3f}", self._targets[slot].role]
            table.add_row(*map(Text, row))
        return table

    def _units(self) -> float:
        """Student-epochs that are finished, with the share of those that are being trained."""
        images = self._facts.train_images if self._facts else 0
        return (self._pace.finished if self._pace else 0) + self._images / max(1, images)

    def _seconds_left(self, speed: float = 0.0) -> float | None:
        """Seconds left, by the speed of the latest epochs; in the first epoch by that of its images, if it is given."""
        if self._pace is None or self._facts is None:
            return None
        units = self._units()
        left = self._pace.seconds_left(units)
        return (
            left if left is not None or not speed else (self._pace.planned - units) * self._facts.train_images / speed
        )


def pathway_words(pathways: PathwaysWeighed) -> str:
    """The number of pathways in use, and the weights of the largest."""
    weights = sorted(zip(pathways.names, pathways.weights, strict=True), key=itemgetter(1), reverse=True)
    used = [f"{name} {weight:.3f}" for name, weight in weights if weight > 0]
    return " · ".join([f"pathways {len(used)} of {len(weights)}", *used[:MOST_PATHWAYS]])


def teacher_words(teachers: TeachersWeighed) -> str:
    """The weights of the teachers over the latest epoch."""
    predictions, features = (
        " ".join(f"{name} {weight:.2f}" for name, weight in zip(teachers.names, weights, strict=True))
        for weights in (teachers.logit_weights, teachers.feature_weights)
    )
    return f"weights of predictions {predictions} · of features {features}"


def _teacher_words(name: str, top1: float) -> str:
    """The name of a teacher and how good it is, if that is known."""
    return name if math.isnan(top1) else f"{name} ({top1:.1f} % right)"
