"""`tfkd-fast study`: a line for every run that ends, and the table."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tfkd_fast.data import open_dataset
from tfkd_fast.errors import UserError
from tfkd_fast.runs.stop import Stop
from tfkd_fast.study import Row, Run, Runner, Study, StudyFolder, distinct
from tfkd_fast.study.results import HEADINGS, cells, contrast_lines, lines, notes

FILE_WIDTH = 160
"""Columns of the table where it is written to no terminal."""


def train_study(
    study: Study,
    out: Path,
    *,
    rows: Sequence[Row],
    seeds: Sequence[int],
    jobs: int | None,
    download: bool,
    stop: Stop,
) -> int:
    """Train what is left of a study and print its table; returns the exit code."""
    try:
        seeds = distinct(tuple(seeds)) if seeds else study.seeds
    except ValueError as error:
        raise UserError(f"--seeds: {error}") from None
    for data in {row.recipe(0).data for row in rows if row.replay is None}:
        open_dataset(data, download=download)  # refused, or fetched, once for all runs
    console = Console(highlight=False, soft_wrap=True)
    folder = StudyFolder(out)

    def on_end(run: Run, failure: str | None) -> None:
        if failure is None:
            summary = folder.run(run).read_summary() or {}
            what = f"test {summary['test_top1']:.2f} % · {summary['seconds']:.0f} s"
        else:
            what = f"failed: {failure}"
        console.print(f"seed {run.seed} · {run.row.title} · {what}", markup=False)

    runner = Runner(study, folder, rows=rows, seeds=seeds, jobs=jobs, on_end=on_end)
    console.print(
        f"{study.name} · {len(rows)} rows · seeds {', '.join(map(str, seeds))} · {runner.already_finished} runs are "
        f"finished, {len(runner.waiting)} to train, {runner.jobs} at a time",
        markup=False,
    )
    runner.run(stop)
    show(runner, console)
    return 1 if runner.failed_now else 0


def show(runner: Runner, console: Console) -> None:
    """Print the table, the notes that its reader needs, and its path."""
    runs = runner.finished()
    found = lines(runner.study, runs)
    table = Table(title=runner.study.name, title_justify="left", box=SIMPLE)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right", overflow="fold")
    for line in found:
        table.add_row(*map(escape, cells(line, runner.seeds)))
    if not console.is_terminal:
        console.width = FILE_WIDTH
    console.print(table)
    for contrast in contrast_lines(runner.study, runs):
        console.print(contrast, markup=False)
    for note in notes(runner.study, found, runs, runner.seeds):
        console.print(note, markup=False)
    for name, failure in runner.failures.items():
        console.print(f"missing: {name}: {failure}", markup=False)
    console.print(f"table {runner.folder.table}", markup=False)
