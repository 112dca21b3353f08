"""Replay: the targets of the surviving student of a run, interval by interval, as a recipe for all training images."""

from pathlib import Path

from tfkd_fast.errors import UserError
from tfkd_fast.events import RunResumed
from tfkd_fast.methods import find_method
from tfkd_fast.models import NetworkOrFactory
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import read_log
from tfkd_fast.runs.precedence import Table
from tfkd_fast.runs.recipe import Recipe, make_recipe, read_recipe


def replay_recipe(run_dir: Path, overrides: Table | None = None, network: NetworkOrFactory | None = None) -> Recipe:
    """The recipe of a finished run under its recorded targets, with the values of `overrides` over its own: nothing is
    held out, nothing learned and nothing selected. A run that was steered in nothing is its own record.
    `network` is the network or the factory of the run, where this process cannot import it.

    Raises:
        UserError: for a run that is not finished, held nothing out, or did not record all targets of its student.
    """
    return make_recipe(replay_table(run_dir, network), overrides)


def replay_table(run_dir: Path, network: NetworkOrFactory | None = None) -> Table:
    """The tables of a finished run's replay, without overrides; see `replay_recipe`."""
    folder = RunFolder(run_dir)
    recipe = read_recipe(folder, network)
    if not folder.summary.exists():
        raise UserError(f"the run in {run_dir} is not finished: tfkd-fast train {folder.resume_option} goes on with it")
    if not recipe.data.holdout:
        raise UserError(f"the run in {run_dir} held no images out: it was trained on all of them already")
    summary = folder.read_summary() or {}
    if summary.get("stopped_after"):
        raise UserError(f"the run in {run_dir} ended early: train it without patience to replay it")
    entry, table = find_method(recipe.method), recipe.table()
    table.pop("patience", None)
    table["data"]["holdout"] = 0.0
    if entry.record is None:  # steered in nothing
        return table
    events = [line.event for line in read_log(folder.metrics) if line.event is not None]
    if any(isinstance(event, RunResumed) and event.log_incomplete for event in events):
        raise UserError(f"the run in {run_dir} cannot be replayed: its log lost lines before it was resumed")
    try:
        recorded = entry.record(recipe.options, events, recipe.epochs)
    except UserError as error:
        raise UserError(f"the run in {run_dir} cannot be replayed: {error}") from None
    return table | {"method": entry.one_trajectory or recipe.method} | recorded
