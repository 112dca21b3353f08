"""`tfkd-fast learn`: a line for every generation, and on a terminal a bar below them."""

import time
from typing import Self

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tfkd_fast.cli.pace import Pace, left_words, plan_words
from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.steering.control.policy_search import Generation

BAR = 20
"""Columns that the bar takes."""


class SearchDisplay:
    """Shows the progress of a search for a policy."""

    def __init__(self, terminal: Terminal, generations: int, students: int, epochs: int) -> None:
        """Show a search of so many generations of students, which train for so many epochs."""
        self._terminal, self._generations = terminal, generations
        self._students, self._epochs = students, epochs
        self._live = Live(console=terminal, auto_refresh=False, transient=True) if terminal.is_live else None
        self._pace: Pace | None = None  # from the first generation on
        self._ended = 0
        self._time_is_known = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def end_epoch(self, trained: int, planned: int) -> None:
        """Show how many student-epochs of those that are planned are trained; before any is, say what is planned."""
        if self._pace is None:
            self._pace = Pace(planned, trained, time.perf_counter())
            before = f", {trained:,} of these trained" if trained else ""
            self._terminal.say(f"plan: {self._plan()}{before}; the time is measured in the first epoch")
            self._ended = self._generations * trained // planned
            if self._live:
                self._live.start()
        self._pace.advance(trained, time.perf_counter())
        if (left := left_words(self._pace)) and not self._time_is_known:
            self._time_is_known = True
            self._terminal.say(f"plan: {self._plan()}, about {left} left at this speed")
        if self._live:
            row = Table.grid(padding=(0, 1))
            words = f"{trained:,} of {planned:,} student-epochs" + (f" · {left} left" if left else "")
            number = min(self._generations, self._ended + 1)
            bar = ProgressBar(total=planned, completed=trained, width=BAR)
            row.add_row(Text(f"generation {number}/{self._generations}", no_wrap=True), bar, Text(words))
            self._live.update(row, refresh=True)

    def end_generation(self, number: int, generation: Generation) -> None:
        """Print what came of the generation of this number, counted from 0."""
        self._ended = number + 1
        best, mean = max(generation.qualities), sum(generation.qualities) / len(generation.qualities)
        left = left_words(self._pace) if self._ended < self._generations else ""
        self._terminal.say(
            f"generation {self._ended}/{self._generations} · quality {mean:.3f} in the mean, {best:.3f} at best"
            + (f" · {left} left" if left else "")
        )

    def _plan(self) -> str:
        runs = self._generations * self._students
        planned = int(self._pace.planned) if self._pace else 0
        return (
            f"{self._generations} generations of {self._students} students, {runs} runs of "
            f"{plan_words(self._epochs, self._epochs)}, up to {planned:,} student-epochs"
        )
