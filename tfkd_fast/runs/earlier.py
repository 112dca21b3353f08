"""Recipes of earlier versions in the keys of this one.

In run folders an earlier version wrote every key of a table, also those that the chosen form does not read. They had
no effect, so that dropping them changes nothing of the run.
"""

from collections.abc import Mapping

from pydantic.fields import FieldInfo

from tfkd_fast.errors import UserError
from tfkd_fast.runs.precedence import Table
from tfkd_fast.settings import table_forms

RETIRED = {"search": ("order",)}
"""Keys that no version reads any more, by table."""


def drop_unread_keys(table: Table, fields: Mapping[str, FieldInfo]) -> Table:
    """The resolved recipe of a run folder, without the keys that nothing reads there.

    Args:
        fields: the keys of the recipe, those of its method included.

    Raises:
        UserError: for a run that this version cannot do as the version did that wrote it.
    """
    table = _move_peers(table)
    result: Table = {}
    for key, values in table.items():
        forms = table_forms(fields[key]) if key in fields else None
        if forms is not None and isinstance(values, dict):
            dropped = {*(forms.known() - forms.read(values)), *RETIRED.get(key, ())}
            values = {name: value for name, value in values.items() if name not in dropped}
        result[key] = values
    return result


def name_trackers(table: Table) -> Table:
    """A recipe, or some values of one, with `trackers` in the place of the key `tensorboard`, true or false, which was
    there before.

    Raises:
        UserError: for both keys, if they contradict each other.
    """
    wanted = table.get("tensorboard")
    if not isinstance(wanted, bool):
        return table
    named = table.get("trackers")
    if isinstance(named, list) and ("tensorboard" in named) != wanted:
        raise UserError(
            f"recipe key 'tensorboard' is the old form of trackers, which says otherwise: leave tensorboard out (got "
            f"{str(wanted).lower()})"
        )
    others = {key: value for key, value in table.items() if key != "tensorboard"}
    return {"trackers": ["tensorboard"] if wanted else []} | others


def _move_peers(table: Table) -> Table:
    """Move the number of peers from `selection.candidates`, where nothing is selected, to `target.peers`."""
    target, selection = table.get("target", {}), table.get("selection", {})
    if "peers" not in target.get("sources", ()) or selection.get("budget") != "none" or "candidates" not in selection:
        return table
    if selection.get("learning_rate_spread"):
        raise UserError(
            "the run had peers that differ in their learning rates without selection, which this version does not do: "
            "set selection.learning_rate_spread in its recipe.toml to 0 if its files are only to be read"
        )
    return table | {"target": target | {"peers": selection["candidates"]}}
