"""Precedence: the rule by which one of several values of a recipe's key holds.

Lowest first: the defaults of the settings, what the method's name presets, the recipe file, the command line; in the
place of the file, a study has its base and above it the row. Three things are more than a merge of tables:

* The tables of a method (target, controller, ...) belong to the method that their level names. A higher level that
  names another one starts from the presets of that method.
* A table may have several forms (controller.name, ...), or keys that are read under a condition only. Where a higher
  level changes the form, keys of lower levels that the new form does not read are dropped. Keys that the choice of
  their own level does not read stay, and validation refuses them. What a method presets for the form of another table
  (`MethodEntry.bound`) is dropped with that form.
* A key may be read only where another table has certain values (`Settings.across`). It is dropped, too, where a higher
  level made it unread, and stays, to be refused, where it is unread among the levels up to its own.
"""

import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import date, time
from typing import Any

from pydantic.fields import FieldInfo

from tfkd_fast.errors import UserError
from tfkd_fast.methods import MethodEntry, find_method
from tfkd_fast.settings import WrittenFloat, WrittenInt, table_forms

Table = dict[str, Any]
Place = tuple[str, str]
"""A table of a recipe, and a key in it."""


def resolve(
    levels: Sequence[Table],
    core: Mapping[str, FieldInfo],
    default_method: str,
    unread: Callable[[Table], Collection[Place]],
) -> Table:
    """The values of all levels, lowest first, over the presets of the method that they name last.

    Args:
        core: the keys of a recipe that belong to no method.
        default_method: what is trained by if no level names a method.
        unread: finds the keys of a recipe that its other tables leave unread.
    """
    method: Any = None
    own: list[Table] = []
    for level in levels:
        named = level.get("method", method)
        if method is not None and named != method:
            foreign = find_method(method).settings.model_fields
            own = [{key: value for key, value in lower.items() if key not in foreign} for lower in own]
        method = named
        own.append({key: value for key, value in level.items() if key != "method"})
    method = default_method if method is None else method
    entry = find_method(method)
    fields = {**core, **entry.settings.model_fields}
    own = [{"method": method} | _outlasting(entry, own, fields), *own]
    result = _stack(own, fields)
    for table, key in unread(result):
        highest = max(number for number, level in enumerate(own) if _has(level, table, key))
        if (table, key) not in unread(_stack(own[: highest + 1], fields)):
            result[table] = {name: value for name, value in result[table].items() if name != key}
    return result


def _outlasting(entry: MethodEntry, levels: Sequence[Table], fields: Mapping[str, FieldInfo]) -> Table:
    """A method's preset without the keys that belong to a form in whose place the levels choose another."""
    result: Table = dict(entry.preset)
    for table, values in entry.preset.items():
        forms = table_forms(fields[table])
        if forms is None or forms.key is None or forms.key not in values:
            continue
        chosen = [level[table][forms.key] for level in levels if _has(level, table, forms.key)]
        if chosen and chosen[-1] != values[forms.key]:
            shared = set.intersection(*(set(form.model_fields) for form in forms.classes))
            result[table] = {key: value for key, value in values.items() if key in shared}
            for other, key in (place for place, form in entry.bound.items() if form == table):
                result[other] = {name: value for name, value in result[other].items() if name != key}
    return result


def _has(level: Table, table: str, key: str) -> bool:
    return isinstance(level.get(table), dict) and key in level[table]


def _stack(levels: Sequence[Table], fields: Mapping[str, FieldInfo]) -> Table:
    """Each level over the one before."""
    result: Table = {}
    for level in levels:
        result = _overlay(result, level, fields)
    return result


def _overlay(low: Table, high: Table, fields: Mapping[str, FieldInfo]) -> Table:
    """`high` over `low`, without what `low` has for a form that `high` changes."""
    result = merge(low, high)
    for key, values in result.items():
        forms = table_forms(fields[key]) if key in fields else None
        if forms is None or not isinstance(low.get(key), dict) or not isinstance(high.get(key), dict):
            continue
        dropped = forms.read(low[key]) - forms.read(values) - high[key].keys()
        result[key] = {name: value for name, value in values.items() if name not in dropped}
    return result


def merge(low: Table, high: Table) -> Table:
    """Nested tables with the values of `high` over those of `low`."""
    result = dict(low)
    for key, value in high.items():
        both_tables = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both_tables else value
    return result


def dotted_values(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of nested tables by their keys with dots between, as in "data.batch_size"."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        values |= dotted_values(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return values


def set_override(overrides: Table, assignment: str) -> None:
    """Put one `table.key=value` of the command line into nested tables; the value is TOML, or else a string."""
    path, equals, text = assignment.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise UserError(f"--set wants table.key=value, got {assignment!r}")
    value = _value(text)
    for key in keys[:-1]:
        overrides = overrides.setdefault(key, {})
        if not isinstance(overrides, dict):
            raise UserError(f"--set {path}: {key} is a value, not a table")
    overrides[keys[-1]] = value


def _value(text: str) -> Any:
    """The TOML value of a text, or the text itself where it is none or a date, which no key wants. A number remembers
    its text. Beyond TOML, True and False are bools and .5 is a number, as in Python."""
    text = text.strip()
    try:
        table = tomllib.loads(f"value = {text}")
        value: Any = table["value"] if len(table) == 1 else text
    except (ValueError, RecursionError):  # also of a number that is too long, or of too many brackets
        value = {"True": True, "False": False}.get(text, text)
        with suppress(ValueError):
            value = float(value) if isinstance(value, str) else value
    if isinstance(value, date | time):
        return text
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    number = WrittenInt(value) if isinstance(value, int) else WrittenFloat(value)
    number.text = text
    return number
