"""`tfkd-fast study`: how far its runs are, a line for every one that ends, and the table."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tfkd_fast.cli.pace import Pace, left_words, plan_words
from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.data import open_dataset
from tfkd_fast.errors import UserError, printable
from tfkd_fast.runs.lock import refuse_if_busy
from tfkd_fast.runs.stop import Stop
from tfkd_fast.study import Row, Run, Runner, Study, StudyFolder, distinct
from tfkd_fast.study.executors import Executor
from tfkd_fast.study.progress import RunProgress
from tfkd_fast.study.results import HEADINGS, StudyResults, cells, contrast_lines, figure, missing_lines, notes
from tfkd_fast.study.words import finding_words

FILE_WIDTH = 80
"""Columns of the table where it is written to no terminal."""
GAP = 2
"""Columns between two columns of the table."""
LOOK = 1.0
"""Seconds between two looks at the logs of the runs."""
PARTS = 10
"""Lines about the progress of all runs, evenly spread, where there is no terminal."""
BAR = 20
"""Columns that the bar of a run takes."""


def train_study(
    study: Study,
    out: Path,
    *,
    rows: Sequence[Row],
    seeds: Sequence[int],
    jobs: int | None,
    executor: Executor | None,
    download: bool,
    stop: Stop,
) -> int:
    """Train what is left of a study, on this machine or by an executor, and print its table; returns the exit code."""
    try:
        seeds = distinct(tuple(seeds)) if seeds else study.seeds
    except ValueError as error:
        raise UserError(f"--seeds: {error}") from None
    terminal, folder = Terminal(optional=True), StudyFolder(out)
    refuse_if_busy(folder.path)  # before a word of what is planned
    for data in dict.fromkeys(row.recipe(0).data for row in rows if row.replay is None):
        dataset = open_dataset(data, download=download)  # refused, or fetched, once for all runs
        if dataset.parts:
            terminal.say(f"{data.root}: {dataset.parts}")
    with StudyDisplay(terminal, study, folder) as display:
        runner = Runner(
            study,
            folder,
            rows=rows,
            seeds=seeds,
            jobs=jobs,
            executor=executor,
            on_end=display.end_run,
            on_look=display.look,
        )
        terminal.say(
            f"{study.name} · {len(rows)} rows · seeds {', '.join(map(str, seeds))} · {runner.already_finished} runs "
            f"are finished, {len(runner.waiting)} to train, {runner.jobs} at a time"
        )
        if others := folder.others(study):
            terminal.say(f"in no row of this study, and left as they are: {', '.join(others)}")
        display.start(runner)
        runner.run(stop)
    show(runner.results(), terminal)
    terminal.say(f"table {folder.files.table}")
    terminal.say(f"page {folder.files.page}")
    return 1 if runner.failed_now else 0


class StudyDisplay:
    """Shows the progress of a study: on a terminal a block that is updated, elsewhere some lines."""

    def __init__(self, terminal: Terminal, study: Study, folder: StudyFolder) -> None:
        self._terminal, self._study, self._folder = terminal, study, folder
        self._live = Live(console=terminal, auto_refresh=False, transient=True) if terminal.is_live else None
        self._runner: Runner | None = None
        self._costs = {row.name: study.cost(row) for row in study.rows.values()}
        self._left: list[Run] = []  # that this command trains, and that have not ended
        self._runs = self._ended = self._finished = 0  # the last in student-epochs, of runs that have ended
        self._planned = self._parts = 0
        self._logs: dict[Run, RunProgress] = {}
        self._pace: Pace | None = None  # from the first epochs on
        self._time_is_known = False
        self._looked = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def start(self, runner: Runner) -> None:
        """Say what is to be trained."""
        self._runner, self._left, self._runs = runner, list(runner.waiting), len(runner.waiting)
        self._planned = sum(self._cost(run) for run in self._left)
        if self._left:
            self._terminal.say(f"plan: {self._plan()}; the time is measured in the first epochs")
        if self._live:
            self._live.start()

    def end_run(self, run: Run, failure: str | None) -> None:
        """Print what became of a run, and how many are left."""
        self._ended += 1
        self._left.remove(run)
        if failure is None:
            summary = self._folder.run(run).read_summary() or {}
            top1, seconds = figure(summary, "test_top1"), figure(summary, "seconds")
            what = "no test accuracy" if top1 is None else f"test {top1:.2f} %"
            what += "" if seconds is None else f" · {seconds:.0f} s"
            self._finished += self._cost(run)
        else:
            what = f"failed: {failure}"
            self._planned -= self._cost(run)
        self._logs.pop(run, None)
        self.look(now=True)
        left = left_words(self._pace)
        self._terminal.say(
            f"seed {run.seed} · {run.row.title} · {what} · {self._ended} of {self._runs} runs ended"
            + (f", {left} left" if left and self._left else "")
        )

    def look(self, *, now: bool = False) -> None:
        """Look at the logs of the runs, once a second, and show how far they are."""
        clock = time.perf_counter()
        if self._runner is None or (not now and clock - self._looked < LOOK):
            return
        self._looked = clock
        for run in self._runner.running:
            self._logs.setdefault(run, RunProgress(self._folder.run(run)))
        reached = [log.look() for log in self._logs.values()]
        trained = self._finished + sum(run.student_epochs for run in reached)
        if self._pace is None:
            # Runs of one length end their epochs at about the same time, so that what is counted begins when all have
            # ended one, or the fastest a second one, and the speed is known when as much again is trained.
            begun = [run for run in reached if run.epoch]
            if begun and (len(begun) == len(reached) or max(run.epoch for run in begun) > 1):
                at_once = sum(run.student_epochs / run.epoch for run in begun)
                self._pace = Pace(self._planned, trained, clock, latest=None, least=at_once)
        else:
            self._pace.planned = self._planned
            self._pace.advance(trained, clock)
        if left := left_words(self._pace):
            if not self._time_is_known:
                self._time_is_known = True
                self._terminal.say(f"plan: {self._plan()}, about {left} left at this speed")
            self._count_part(trained, "" if now else left)
        if self._live and self._live.is_started:
            self._live.update(self._block(trained, left), refresh=True)

    def _count_part(self, trained: int, left: str) -> None:
        """Count the parts that are trained; where there is no terminal, say so of each whose time `left` is given."""
        part = PARTS * trained // max(1, self._planned)
        if part > self._parts and self._live is None and left and self._logs:
            runs = (f"seed {run.seed} {run.row.title} {self._epoch(run)}" for run in self._logs)
            self._terminal.say(f"{100 * trained // self._planned} % · {' · '.join(runs)} · {left} left")
        self._parts = max(part, self._parts)

    def _block(self, trained: int, left: str) -> RenderableType:
        percent = 100 * trained // max(1, self._planned)
        words = [
            f"{self._ended} of {self._runs} runs ended",
            f"{percent} % trained",
            *([f"{left} left"] if left else []),
        ]
        runs = Table.grid(padding=(0, GAP, 0, 0))
        for run, log in self._logs.items():
            reached, (_, cost) = log.look(), self._costs[run.row.name]
            judged = "" if reached.holdout_top1 is None else f"held-out {reached.holdout_top1:.1f} %"
            runs.add_row(
                Text(printable(f"seed {run.seed} · {run.row.title}")),
                ProgressBar(total=cost, completed=reached.student_epochs, width=BAR),
                Text(self._epoch(run), no_wrap=True),
                Text(judged, no_wrap=True),
            )
        return Group(Text(" · ".join(words)), runs)

    def _epoch(self, run: Run) -> str:
        epoch, epochs = self._logs[run].look().epoch, self._costs[run.row.name][0]
        return f"epoch {epoch}/{epochs}" if epoch else "starts"

    def _plan(self) -> str:
        epochs = sum(self._costs[run.row.name][0] for run in self._left)
        return f"{self._runs} run{'s' * (self._runs > 1)}, {plan_words(epochs, self._planned)}"

    def _cost(self, run: Run) -> int:
        return self._costs[run.row.name][1]


def show(results: StudyResults, terminal: Terminal) -> None:
    """Print what was found, the table, and the notes that its reader needs."""
    width = terminal.width if terminal.is_terminal else FILE_WIDTH
    terminal.say(results.name)
    terminal.say(finding_words(results))
    for table in tables([cells(line) for line in results.lines], width):
        terminal.print(table, width=width)
        terminal.print()
    for sentence in (*contrast_lines(results), *notes(results), *missing_lines(results)):
        terminal.say(sentence)


def tables(rows: Sequence[Sequence[str]], width: int) -> list[Table]:
    """The table of a study in columns of whole words and numbers: one table, or where that is too wide several below
    each other, each with the names of the rows.

    Args:
        rows: a cell for each of `HEADINGS`.
        width: the columns that there are.
    """
    names = [printable(row[0]) for row in rows]
    columns = {
        number: max(_longest_word(HEADINGS[number]), *(cell_len(row[number]) for row in rows))
        for number in range(1, len(HEADINGS))
    }
    longest, whole = (max(map(measure, (HEADINGS[0], *names))) for measure in (_longest_word, cell_len))
    if max(longest, width // 10) + sum(GAP + wanted for wanted in columns.values()) <= width:
        parts = [list(columns)]
        name = min(whole, width - sum(GAP + wanted for wanted in columns.values()))
    else:
        name = min(whole, max(longest, width // 4))
        parts = [[]]
        room = width - name
        for number, wanted in columns.items():
            if parts[-1] and GAP + wanted > room:
                parts.append([])
                room = width - name
            parts[-1].append(number)
            room -= GAP + wanted
    return [_table(names, rows, name, {number: columns[number] for number in part}) for part in parts]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], width: int, columns: dict[int, int]) -> Table:
    """One table, with columns of these widths behind the names of the rows."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    table.add_column(HEADINGS[0], width=width, overflow="fold")
    for number, wanted in columns.items():
        table.add_column(HEADINGS[number], justify="right", width=wanted, overflow="fold")
    for name, row in zip(names, rows, strict=True):
        table.add_row(name, *(row[number] for number in columns))
    return table


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=1)
