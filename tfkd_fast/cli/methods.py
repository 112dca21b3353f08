"""`tfkd-fast methods`: what there is to train by, and what can be set, as the methods themselves say it."""

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tfkd_fast.methods import METHODS, MethodEntry, find_method
from tfkd_fast.settings import Settings

FIXED = "nothing else: the method is named for it"
NEEDED, UNSET = "needed", "unset"
"""Defaults that are no values."""


class Option(NamedTuple):
    """One value of a recipe that a method reads."""

    key: str
    """As `--set` takes it."""
    default: str
    takes: str
    meaning: str
    """Empty where the settings say nothing."""

    def __str__(self) -> str:
        return f"{self.key}={self.default}"


def show_methods(console: Console) -> None:
    """A table of all methods, and one of their options, where methods of the same options stand together."""
    overview = Table(title="Methods", title_justify="left", title_style="bold", show_lines=True)
    for heading in ("method", "teachers", "what it teaches with"):
        overview.add_column(heading, no_wrap=heading == "method", overflow="fold")
    for name, entry in METHODS.items():
        lines = [escape(entry.summary), f"[italic]{escape(entry.source)}[/italic]"]
        presets = [f"{table}.{key}={_text(value)}" for table, of in entry.preset.items() for key, value in of.items()]
        lines += [f"sets {escape(' '.join(presets))}"] if presets else []
        overview.add_row(name, _teachers(entry), "\n".join(lines))
    console.print(overview)

    table = Table(title="Options", title_justify="left", title_style="bold")
    table.add_column("of", no_wrap=True)
    table.add_column("options and their defaults", overflow="fold")
    alike: dict[type[Settings], list[str]] = {}
    for name, entry in METHODS.items():
        alike.setdefault(entry.settings, []).append(name)
    for settings, names in alike.items():
        options = "  ".join(map(str, options_of(settings)))
        table.add_row("\n".join(names), escape(options), end_section=True)
    console.print(table)
    console.print("tfkd-fast methods NAME: what each option of a method takes, and what it is for")


def show_method(name: str, console: Console) -> None:
    """All that can be set of one method. Raises UserError for an unknown name."""
    entry = find_method(name)
    console.print(f"[bold]{name}[/bold]: {escape(entry.summary)}")
    console.print(f"[italic]{escape(entry.source)}[/italic]; teachers: {_teachers(entry)}")
    table = Table()
    table.add_column("option", no_wrap=True)
    table.add_column("default", overflow="fold", max_width=16)
    table.add_column("takes", overflow="fold")
    for option in options_of(entry.settings, entry.preset, entry.named_for):
        takes = escape(option.takes) + (f"\n[dim]{escape(option.meaning)}[/dim]" if option.meaning else "")
        table.add_row(option.key, escape(option.default), takes)
    console.print(table)


def options_of(
    settings: type[Settings], preset: Mapping[str, Any] | None = None, named_for: tuple[str, str] | None = None
) -> list[Option]:
    """Of the tables of a recipe that `settings` describes, with defaults over which those of `preset` go.

    `named_for` is as in `MethodEntry`.
    """
    fixed = ".".join(named_for) if named_for else None
    options = _options(settings, preset or {}, "")
    return [option._replace(takes=FIXED) if option.key == fixed else option for option in options]


def _options(settings: type[Settings], values: Mapping[str, Any], prefix: str) -> Iterator[Option]:
    meanings = _meanings(settings)
    for name, field in settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        kind = type(default) if isinstance(default, Settings) else field.annotation
        if isinstance(values.get(name), Mapping):  # a table that may be left out is there
            (kind,) = (form for form in get_args(kind) or (kind,) if form is not types.NoneType)
        if isinstance(kind, type) and issubclass(kind, Settings):
            inner = dict(default) if isinstance(default, Settings) else {}
            yield from _options(kind, inner | dict(values.get(name, {})), f"{prefix}{name}.")
        else:
            text = _text(values.get(name, default))
            yield Option(prefix + name, text, _takes(field.annotation, field.metadata), meanings.get(name, ""))


def _meanings(settings: type[Settings]) -> dict[str, str]:
    """What the docstrings under the fields of a class say, which Python does not keep."""
    try:
        source = inspect.getsource(settings)
    except OSError:  # installed without its source
        return {}
    (definition,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(note.value.value.split())
        for field, note in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant) and isinstance(note.value.value, str)
    }


def _text(value: Any) -> str:
    """As `--set` takes it; numbers to four digits."""
    if value is PydanticUndefined:
        return NEEDED
    if value is None:
        return UNSET
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(repr(item) if isinstance(item, str) else _text(item) for item in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _takes(annotation: Any, constraints: list[Any]) -> str:
    """In words, the values of a type within bounds, which are objects of annotated_types."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        fields = [item.metadata if isinstance(item, FieldInfo) else [item] for item in args[1:]]
        return _takes(args[0], sum(fields, constraints))
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        forms = (_takes(form, constraints) for form in args if form is not types.NoneType)
        return " or ".join([*forms, *([UNSET] if types.NoneType in args else [])])
    if origin is tuple:
        least = next((item.min_length for item in constraints if hasattr(item, "min_length")), 0)
        return f"list{f' of at least {least}' if least else ''}: {_takes(args[0], [])}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return f"tables of {', '.join(annotation.model_fields)}"
    word = {bool: "true, false", int: "integer", float: "number"}.get(annotation, "text")
    bounds = [(sign, f"{getattr(c, name):g}") for c in constraints for name, sign in SIGNS if hasattr(c, name)]
    if len(bounds) < 2:
        return " ".join([word, *(part for bound in bounds for part in bound)])
    (over, low), (under, high) = sorted(bounds, reverse=True)
    return f"{low} {over.replace('>', '<')} {word} {under} {high}"


SIGNS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def _teachers(entry: MethodEntry) -> str:
    fewest, most = entry.needs().teachers
    if most is None:
        return f"{fewest} or more"
    return f"{fewest} to {most}" if most > fewest else str(fewest or "none")
