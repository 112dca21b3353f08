"""Replay: the targets that the surviving student of a run was trained with, as tables of a recipe."""

import warnings
from collections.abc import Iterable
from typing import Any

from tfkd_fast.errors import Notice, UserError
from tfkd_fast.events import Event, TargetApplied
from tfkd_fast.methods.controlled.method import ControlledTargetsSettings


def recorded_tables(settings: ControlledTargetsSettings, events: Iterable[Event], epochs: int) -> dict[str, Any]:
    """The tables of a recipe that trains one student by the targets of an earlier run; nothing is learned or selected.

    Args:
        settings: the tables of that run.
        events: its log.
        epochs: its length.

    Returns:
        The tables that differ from those of that run.

    Raises:
        UserError: for a log that does not hold all that the student was trained with.
    """
    if "peers" in settings.target.sources:
        raise UserError("its target held predictions of peers, not recorded")
    applied = [event for event in events if isinstance(event, TargetApplied)]
    steered = settings.target.takes_action
    if steered and not applied:
        raise UserError("it is of an older version, which did not record what its student was taught")
    known = 0  # epochs from the first one on
    for event in applied:
        if event.first_epoch == known + 1:
            known += event.epochs
    if applied and known != epochs:
        raise UserError(f"its log does not say what its student was taught in epoch {known + 1}")
    tables: dict[str, Any] = {"selection": {"budget": "none"}, "controller": {"name": "fixed"}}
    warm = [event for event in applied if not steered or event.action is not None]  # after the one-hot warm-up
    recorded = [_entry(event, epochs) for event in warm]
    if any(entry["action"] or entry["learning_rate_factor"] != 1.0 for entry in recorded):
        warmup_epochs = settings.controller.warmup_epochs
        tables["controller"] = {"name": "recorded", "warmup_epochs": warmup_epochs, "recorded": recorded}
    if settings.target.shared_memory:
        warnings.warn(
            Notice("a replay remembers its own predictions, not those that candidates had in common"), stacklevel=2
        )
        tables["target"] = settings.target.model_dump(mode="json", exclude_none=True) | {"shared_memory": False}
    return tables


def _entry(applied: TargetApplied, epochs: int) -> dict[str, Any]:
    """One interval for the `recorded` controller; it starts at a fraction of the run."""
    return {
        "start": (applied.first_epoch - 1) / epochs,
        "action": list(applied.action or ()),
        "learning_rate_factor": applied.learning_rate_factor,
    }
