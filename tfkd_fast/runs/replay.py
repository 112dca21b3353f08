"""Replay: what the surviving student of a run was taught, interval by interval, as a recipe for all training images."""

from pathlib import Path

from tfkd_fast.errors import UserError
from tfkd_fast.events import TargetApplied
from tfkd_fast.methods import find_method
from tfkd_fast.methods.controlled.method import ControlledTargetsSettings
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import read_log
from tfkd_fast.runs.precedence import Table
from tfkd_fast.runs.recipe import Recipe, make_recipe, read_recipe


def replay_recipe(run_dir: Path, overrides: Table | None = None) -> Recipe:
    """The recipe of a finished run under its recorded targets, with the values of `overrides` over its own: nothing is
    held out, nothing learned and nothing selected. A run that was steered in nothing is its own record.

    Raises:
        UserError: for a run that is not finished, held nothing out, or did not record all that its student was taught.
    """
    return make_recipe(replay_table(run_dir), overrides)


def replay_table(run_dir: Path) -> Table:
    """The tables of that recipe, without its overrides."""
    folder = RunFolder(run_dir)
    recipe = read_recipe(folder)
    if not folder.summary.exists():
        raise UserError(f"the run in {run_dir} is not finished: tfkd-fast train --resume {run_dir} goes on with it")
    if not recipe.data.holdout:
        raise UserError(f"the run in {run_dir} held no images out: it was trained on all of them already")
    settings = recipe.options
    if not isinstance(settings, ControlledTargetsSettings):  # steered in nothing
        table = recipe.table()
        table["data"]["holdout"] = 0.0
        return table
    if "peers" in settings.target.sources:
        raise UserError(f"the run in {run_dir} cannot be replayed: its target held predictions of peers, not recorded")

    applied = [line.event for line in read_log(folder.metrics) if isinstance(line.event, TargetApplied)]
    steered = settings.target.takes_action
    if steered and not applied:
        raise UserError(
            f"the run in {run_dir} is of an older version, which did not record what its student was taught"
        )
    table = recipe.table()
    table["method"] = find_method(recipe.method).one_trajectory or recipe.method
    table["data"]["holdout"] = 0.0
    table["selection"] = {"budget": "none"}
    warm = [event for event in applied if not steered or event.action is not None]  # after the one-hot warm-up
    recorded = [_entry(event, recipe.epochs) for event in warm]
    if any(entry["action"] or entry["learning_rate_factor"] != 1.0 for entry in recorded):
        warmup_epochs = settings.controller.warmup_epochs
        table["controller"] = {"name": "recorded", "warmup_epochs": warmup_epochs, "recorded": recorded}
    return table


def _entry(applied: TargetApplied, epochs: int) -> Table:
    """One interval for the `recorded` controller; it starts at a fraction of the run."""
    return {
        "start": (applied.first_epoch - 1) / epochs,
        "action": list(applied.action or ()),
        "learning_rate_factor": applied.learning_rate_factor,
    }
