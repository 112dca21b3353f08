"""`tfkd-fast options`: every key of every table of a recipe, with its type, its default and what it is."""

import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.errors import UserError, nearest
from tfkd_fast.methods import METHODS
from tfkd_fast.runs.recipe import core_fields
from tfkd_fast.settings import LARGEST, ReadIf, Settings, TableForms, default_form, table_forms

NEEDED, UNSET = "needed", "unset"
"""Defaults that are no values."""

WIDEST = 100
"""Columns that lines are broken at where the terminal is wider."""

TOP = "recipe"
"""The name under which the keys that are in no table are listed."""


class Option(NamedTuple):
    """One key of a recipe."""

    key: str
    """The name within its table."""
    default: str
    """The default as `--set` takes it; NEEDED or UNSET where it is no value."""
    takes: str
    """The values that the key takes, in words."""
    description: str
    """The description of the key, in a sentence."""


class OptionGroup(NamedTuple):
    """Keys that the same forms of a table have."""

    forms: tuple[str, ...]
    """Names of the forms; empty for keys that all forms have."""
    options: list[Option]


@dataclass(frozen=True)
class TableOptions:
    """One table of a recipe, for the methods that have it alike."""

    name: str
    """The name in a recipe file; TOP for the keys that are in no table."""
    description: str
    """The description of the table, in a sentence."""
    forms: TableForms
    methods: tuple[str, ...] = ()
    """Methods that have it; empty for a table of every recipe."""
    chosen: type[Settings] | None = None
    """The only form whose keys are listed; None for all."""

    def groups(self, preset: Mapping[str, Any] | None = None) -> list[OptionGroup]:
        """The keys of the table: those of all its forms first, then those of some; `preset` goes over the defaults."""
        preset, names = preset or {}, self.forms.names
        classes = (self.chosen,) if self.chosen else self.forms.every_class
        owners: dict[Option, list[str]] = {}
        for form in classes:
            for option in self._options(form, preset):
                owners.setdefault(option, []).append(_form_name(names, form))
        groups: dict[tuple[str, ...], list[Option]] = {(): []}
        for option, having in owners.items():
            alike = () if len(having) == len(classes) else tuple(having)
            groups.setdefault(alike, []).append(option)
        return [OptionGroup(forms, options) for forms, options in groups.items()]

    def _options(self, form: type[Settings], preset: Mapping[str, Any]) -> Iterator[Option]:
        for key, field in form.model_fields.items():
            if key == self.forms.key:
                default = preset.get(key, default_form(key, self.forms.classes))
                yield Option(key, text(default), ", ".join(self.forms.names), _description(self.forms, key))
            else:
                yield from options_of(key, field, preset)


def options_of(key: str, field: FieldInfo, preset: Mapping[str, Any]) -> Iterator[Option]:
    """A key of a table, and the keys of the tables in it where it is a list of tables."""
    default = preset.get(key, field.get_default(call_default_factory=True, validated_data={}))
    condition = "".join(f"; read where {mark.words}" for mark in field.metadata if isinstance(mark, ReadIf))
    yield Option(key, text(default), values_of(field.annotation, field.metadata) + condition, field.description or "")
    for entry in () if (inner := table_forms(field)) is None else inner.classes:
        for name, entry_field in entry.model_fields.items():
            yield from options_of(f"{key}[].{name}", entry_field, {})


def all_tables() -> list[TableOptions]:
    """The tables of every recipe, then those of methods; a table that is not the same for all of them comes again."""
    tables = [TableOptions(TOP, "The keys that are in no table.", TableForms(None, (_top(),)))]
    for name, field in core_fields().items():
        if forms := table_forms(field):
            tables.append(TableOptions(name, field.description or "", forms))
    own: dict[tuple[str, tuple[type[Settings], ...]], TableOptions] = {}
    for method, entry in METHODS.items():
        for table in tables_of(entry.settings):
            before = own.get((table.name, table.forms.classes))
            methods = (*before.methods, method) if before else (method,)
            own[table.name, table.forms.classes] = TableOptions(table.name, table.description, table.forms, methods)
    order = {name: number for number, (name, _) in enumerate(own)}
    return tables + sorted(own.values(), key=lambda table: min(order[name] for name in order if name == table.name))


def tables_of(settings: type[Settings]) -> list[TableOptions]:
    """The tables of a method."""
    found = ((name, field, table_forms(field)) for name, field in settings.model_fields.items())
    return [TableOptions(name, field.description or "", forms) for name, field, forms in found if forms]


def show_options(table: str | None, terminal: Terminal) -> None:
    """Print the keys of one table, or of all.

    Raises:
        UserError: there is no table of this name.
    """
    tables = all_tables()
    chosen = [one for one in tables if table in (None, one.name)]
    if not chosen:
        raise UserError(f"a recipe has no table {table!r}: {nearest(str(table), {one.name for one in tables})}")
    for number, one in enumerate(chosen):
        if number:
            terminal.print()
        show_table(one, terminal)


def show_table(table: TableOptions, terminal: Terminal, preset: Mapping[str, Any] | None = None) -> None:
    """Print one table; `preset` goes over the defaults."""
    width = min(terminal.width, WIDEST)
    title = table.name if table.name == TOP else f"[{table.name}]"
    terminal.print(title, style="bold")
    print_wrapped(terminal, table.description, width, 0)
    if table.methods:
        print_wrapped(terminal, f"Methods: {', '.join(table.methods)}", width, 0)
    if len(table.forms.names) > 1 and table.chosen is None:
        print_wrapped(terminal, f"Forms, by {table.forms.key}:", width, 0)
        for name, form in table.forms.names.items():
            print_wrapped(terminal, f"{name}: {' '.join((form.__doc__ or '').split())}", width, 2, hanging=2)
    for forms, options in table.groups(preset):
        if forms:
            terminal.print()
            print_wrapped(terminal, f"Where {table.forms.key} is {_or(forms)}:", width, 0)
        for option in options:
            print_wrapped(terminal, f"{option.key} = {option.default}  ({option.takes})", width, 2, hanging=4)
            print_wrapped(terminal, option.description, width, 6)
    if len(table.forms.names) > 1 and table.chosen is not None:
        line = f"tfkd-fast options {table.name} lists the keys that are read under another {table.forms.key}."
        print_wrapped(terminal, line, width, 2)


def print_wrapped(terminal: Terminal, sentence: str, width: int, indent: int = 0, hanging: int = 0) -> None:
    """Print a sentence in lines of at most `width` columns, all indented, those after the first by `hanging` more."""
    lines = textwrap.wrap(
        sentence,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
        break_on_hyphens=False,
        break_long_words=False,
    )
    for line in lines:
        terminal.print(line, soft_wrap=True)


def _top() -> type[Settings]:
    """The keys of a recipe that are in no table, as a table."""
    plain = {name: (field.annotation, field) for name, field in core_fields().items() if table_forms(field) is None}
    return create_model("TopKeys", __base__=Settings, **plain)  # type: ignore[call-overload]


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _form_name(names: Mapping[str, type[Settings]], form: type[Settings]) -> str:
    return next((name for name, other in names.items() if other is form), "")


def _description(forms: TableForms, key: str) -> str:
    """The description of the key that tells forms apart, which the base class of the forms has."""
    return next(
        field.description
        for form in forms.every_class
        for base in form.__mro__
        if issubclass(base, Settings) and (field := base.model_fields.get(key)) and field.description
    )


def text(value: Any) -> str:
    """A value as `--set` takes it; numbers to four digits."""
    if value is PydanticUndefined or value is None:
        return NEEDED if value is PydanticUndefined else UNSET
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(repr(item) if isinstance(item, str) else text(item) for item in value)}]"
    if isinstance(value, str):
        return value or "''"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def values_of(annotation: Any, constraints: list[Any]) -> str:
    """The values of a type in words, within bounds, which are objects of annotated_types."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        fields = [item.metadata if isinstance(item, FieldInfo) else [item] for item in args[1:]]
        return values_of(args[0], sum(fields, constraints))
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        forms = (values_of(form, constraints) for form in args if form is not types.NoneType)
        return " or ".join([*forms, *([UNSET] if types.NoneType in args else [])])
    if origin is tuple:
        least = next((item.min_length for item in constraints if hasattr(item, "min_length")), 0)
        return f"list{f' of at least {least}' if least else ''}: {values_of(args[0], [])}"
    if origin is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return f"tables of {', '.join(annotation.model_fields)}"
    word = {bool: "true, false", int: "integer", float: "number"}.get(annotation, "text")
    limits = [(sign, getattr(c, name)) for c in constraints for name, sign in SIGNS if hasattr(c, name)]
    bounds = [(sign, f"{limit:g}") for sign, limit in limits if abs(limit) != LARGEST]
    if len(bounds) < 2:
        return " ".join([word, *(part for bound in bounds for part in bound)])
    (over, low), (under, high) = sorted(bounds, reverse=True)
    return f"{low} {over.replace('>', '<')} {word} {under} {high}"


SIGNS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
