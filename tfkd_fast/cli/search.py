"""`tfkd-fast search`: how far its trials are, a line for every one that ends, and what was found."""

import math
import time
from pathlib import Path
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tfkd_fast.cli.pace import Pace, left_words, plan_words
from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.data import open_dataset
from tfkd_fast.errors import printable
from tfkd_fast.methods import find_method
from tfkd_fast.runs.lock import refuse_if_busy
from tfkd_fast.runs.stop import Stop
from tfkd_fast.search.folder import SearchFolder
from tfkd_fast.search.plan import Search
from tfkd_fast.search.results import TrialRecord
from tfkd_fast.search.runner import LiveTrial, SearchRunner
from tfkd_fast.search.words import finding_words, judgement_words, values_words
from tfkd_fast.study.executors import Executor

LOOK = 1.0
"""Seconds between two updates of what is shown."""
BAR = 20
"""Columns that the bar of a trial takes."""


def train_trials(
    search: Search,
    out: Path,
    *,
    trials: int,
    jobs: int | None,
    executor: Executor | None,
    download: bool,
    stop: Stop,
) -> int:
    """Train what is left of a search, on this machine or by an executor, and print what was found; returns the exit
    code."""
    terminal, folder = Terminal(optional=True), SearchFolder(out)
    refuse_if_busy(folder.path)  # before a word of what is planned
    folder.refuse_another(search)
    data = search.base.data
    dataset = open_dataset(data, download=download)  # refused, or fetched, once for all trials
    if dataset.parts:
        terminal.say(f"{data.root}: {dataset.parts}")
    with (
        SearchRunner(search, folder, trials=trials, jobs=jobs, executor=executor) as runner,
        TrialDisplay(terminal, runner) as display,
    ):
        display.start()
        runner.run(display.end_trial, display.look, stop)
        results = runner.results()
    terminal.say(finding_words(results))
    for trial in results.trials:
        if trial.state == "failed":
            terminal.say(f"failed: trial {trial.number}: {trial.reason}")
    if results.best is not None:
        terminal.say(f"best recipe {folder.best}")
    terminal.say(f"page {folder.page}")
    return 0 if results.best is not None else 1


class TrialDisplay:
    """Shows the progress of a search: on a terminal a block that is updated, elsewhere some lines."""

    def __init__(self, terminal: Terminal, runner: SearchRunner) -> None:
        self._terminal, self._runner = terminal, runner
        self._live = Live(console=terminal, auto_refresh=False, transient=True) if terminal.is_live else None
        self._ended = 0  # by this command
        self._pace: Pace | None = None
        self._looked = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def start(self) -> None:
        """Say what is to be trained."""
        results, search = self._runner.results(), self._runner.search
        left = max(0, self._runner.planned - results.ended)
        self._terminal.say(
            f"{search.name} · {len(search.ranges)} keys · {results.ended} trials have ended, {left} to train, "
            f"{self._runner.jobs} at a time"
        )
        if results.ended > self._runner.planned:
            self._terminal.say(f"these are more than the {self._runner.planned} of --trials, and all of them count")
        if left:
            base = search.base
            cost = find_method(base.method).student_epochs(base.options, base.epochs)
            words = plan_words(left * base.epochs, left * cost)
            self._terminal.say(f"plan: {left} trial{'s' * (left > 1)}, up to {words}, fewer where trials are pruned")
            self._pace = Pace(results.ended + left, results.ended, time.perf_counter(), latest=None)
            if self._live:
                self._live.start()

    def end_trial(self, trial: TrialRecord) -> None:
        """Print what became of a trial, and the best by now."""
        results = self._runner.results()
        what = f"failed: {trial.reason}"
        if trial.state == "pruned":
            what = f"pruned after epoch {trial.epochs} at {judgement_words(results, trial)}"
        elif trial.state == "finished":
            what = judgement_words(results, trial)
        best = f" · best: trial {results.best.number}" if results.best else ""
        if self._pace:
            self._pace.advance(results.ended, time.perf_counter())
        left = left_words(self._pace) if results.ended < self._runner.planned else ""
        self.look(now=True)
        self._terminal.say(
            f"trial {trial.number} · {values_words(trial)} · {what}{best} · "
            f"{results.ended} of {self._runner.planned} trials ended" + (f", {left} left" if left else "")
        )

    def look(self, *, now: bool = False) -> None:
        """Show how far the trials are, once a second."""
        clock = time.perf_counter()
        if self._live is None or not self._live.is_started or (not now and clock - self._looked < LOOK):
            return
        self._looked = clock
        self._live.update(self._block(), refresh=True)

    def _block(self) -> RenderableType:
        results = self._runner.results()
        left = left_words(self._pace)
        words = [f"{results.ended} of {self._runner.planned} trials ended", *([f"{left} left"] if left else [])]
        table = Table.grid(padding=(0, 2, 0, 0))
        for trial in self._runner.live:
            reached = trial.progress.look()
            judged = "" if reached.holdout_top1 is None else f"held-out {reached.holdout_top1:.1f} %"
            table.add_row(
                Text(printable(f"trial {trial.number}")),
                ProgressBar(total=trial.student_epochs, completed=reached.student_epochs, width=BAR),
                Text(_epoch(trial, reached.epoch), no_wrap=True),
                Text(judged, no_wrap=True),
            )
        return Group(Text(" · ".join(words)), table)


def _epoch(trial: LiveTrial, epoch: int) -> str:
    if trial.pruned:
        return "is pruned"
    return f"epoch {epoch}/{trial.epochs}" if epoch else "starts"
