"""Settings: every key has a description, and every key of every form is read somewhere in the package."""

import ast
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import numpy as np
import pytest
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

import tfkd_fast
from tfkd_fast.methods import METHODS
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.settings import Forms, ReadIf, Settings, form_name, named_once, table_forms
from tfkd_fast.steering.control.settings import UCBSettings

PACKAGE = Path(tfkd_fast.__file__).parent
Scope = frozenset[str]


Held = tuple[type[Settings], str | None, str]


def held_tables(settings: type[Settings]) -> Iterator[Held]:
    """Every table below a settings class: its class, the key that tells its forms apart, and its name."""
    properties = {name: each for name, each in vars(settings).items() if _is_property(each)}
    given = {name: get_type_hints(each.fget, include_extras=True)["return"] for name, each in properties.items()}
    fields = {**settings.model_fields, **{name: FieldInfo.from_annotation(hint) for name, hint in given.items()}}
    for name, field in fields.items():
        forms = table_forms(field)
        for form in forms.classes if forms else ():
            yield form, forms.key if forms else None, name
            yield from held_tables(form)


def all_tables() -> dict[type[Settings], tuple[str | None, Scope]]:
    """Every settings class of a recipe file, with the key that tells its forms apart and the names that it has."""
    found: dict[type[Settings], tuple[str | None, Scope]] = {Recipe: (None, frozenset())}
    for root in (Recipe, *(entry.settings for entry in METHODS.values())):
        for form, key, name in held_tables(root):
            found[form] = key, found.get(form, (key, frozenset()))[1] | {name}
    return found


def _is_property(value: object) -> bool:
    return isinstance(value, property) and "return" in get_type_hints(value.fget)


def _lineage(settings: type[Settings]) -> Scope:
    """The names of a class and of its bases below `Settings`."""
    bases = (base for base in settings.__mro__ if issubclass(base, Settings) and base is not Settings)
    return frozenset(base.__name__ for base in bases)


class Reads(ast.NodeVisitor):
    """Which attributes a module reads, and of which classes they may be.

    A read counts for the classes that the module names, but within a `case` of a `match` for those of its pattern only,
    and of `self` for the class that it stands in only; `x.table.key` counts for the tables of that name. Validators do
    not count: they check a value, nobody uses it.
    """

    def __init__(self, names: Scope) -> None:
        self.reads: set[tuple[str, str]] = set()
        self._scope, self._own = names, ""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before, self._own = self._own, node.name
        self.generic_visit(node)
        self._own = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not any("validator" in ast.unparse(decorator) for decorator in node.decorator_list):
            self.generic_visit(node)

    def visit_match_case(self, node: ast.match_case) -> None:
        patterns = [part for part in ast.walk(node.pattern) if isinstance(part, ast.MatchClass)]
        for pattern in patterns:
            self.reads |= {(ast.unparse(pattern.cls), key) for key in pattern.kwd_attrs}
        before = self._scope
        if patterns:
            self._scope = frozenset(ast.unparse(pattern.cls) for pattern in patterns)
        self.generic_visit(node)
        self._scope = before

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
            scope = {self._own} if of_self else self._scope
            table = {f"[{node.value.attr}]"} if isinstance(node.value, ast.Attribute) else set()
            self.reads |= {(name, node.attr) for name in scope | table}
        self.generic_visit(node)


ALIASES = {
    target.id: value
    for file in PACKAGE.rglob("settings.py")
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
    for value in [frozenset(part.id for part in ast.walk(node.value) if isinstance(part, ast.Name))]
    if target.id.endswith("Settings")
}
"""Unions of tables by name: a module that names one reads what all their members have."""


@cache
def all_reads() -> frozenset[tuple[str, str]]:
    """Name of a class, a base or a union, and an attribute that the package reads where it is named."""
    found: set[tuple[str, str]] = set()
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        reads = Reads(frozenset(names))
        reads.visit(tree)
        found |= reads.reads
    return frozenset(found)


def unread_keys(settings: type[Settings], key: str | None, names: Scope) -> set[str]:
    """The keys of a table of these names that nothing reads, where `key` tells its forms apart."""
    lineage = _lineage(settings)
    tables = {f"[{name}]" for name in names}
    unions = [members for members in ALIASES.items() if lineage & members[1]]
    unread = set()
    for name in settings.model_fields:
        shared = {alias for alias, members in unions if all(name in _fields(member) for member in members)}
        if name != key and not any((reader, name) in all_reads() for reader in lineage | tables | shared):
            unread.add(name)
    return unread


@cache
def _fields(name: str) -> Scope:
    """The keys of the class of this name; of anything else all there are."""
    classes = [each for each in _subclasses(Settings) if each.__name__ == name]
    return frozenset(classes[0].model_fields) if classes else frozenset({key for _, key in all_reads()})


def _subclasses(settings: type[Settings]) -> Iterator[type[Settings]]:
    for each in settings.__subclasses__():
        yield each
        yield from _subclasses(each)


TABLES = all_tables()


def test_all_tables_are_found_by_walking_the_models() -> None:
    names = {table.__name__ for table in TABLES}
    assert len(names) == len(TABLES) > 50
    assert names >= {"DataSettings", "UCBSettings", "RecordedAction", "HalvingSelectionSettings", "MMKDMeta"}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_every_key_is_read(table: type[Settings]) -> None:
    assert unread_keys(table, *TABLES[table]) == set()


class PlantedSettings(UCBSettings):
    """A bandit with keys of others, and with one that nobody has."""

    clip: float = 0.2
    """Read of the policy gradient only."""
    action: tuple[float, ...] = ()
    """Read of the fixed controller only, in a case of its own beside that of this bandit."""
    unheard_of: int = 0
    """Read nowhere in the package."""


def test_a_key_that_only_others_have_a_reader_for_is_found() -> None:
    assert unread_keys(PlantedSettings, *TABLES[UCBSettings]) == {"clip", "action", "unheard_of"}


def numbers(schema: Any) -> Iterator[dict[str, Any]]:
    """The parts of a JSON schema that stand for numbers which a file can choose."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and "const" not in schema and "enum" not in schema:
            yield schema
        for part in schema.values():
            yield from numbers(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from numbers(part)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_every_number_has_finite_bounds(table: type[Settings]) -> None:
    for schema in numbers(table.model_json_schema()):
        lower = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
        upper = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
        assert -math.inf < lower < upper < math.inf, schema


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_nan_or_infinite(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Far(kind="far", distance=value)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_every_key_is_described_in_a_sentence_that_stands_alone(table: type[Settings]) -> None:
    for name, field in table.model_fields.items():
        if name == TABLES[table][0]:
            continue  # described by the base class of the forms, see below
        _check_sentence(table, name, field.description)


@pytest.mark.parametrize("table", [table for table in TABLES if TABLES[table][0]], ids=lambda table: table.__name__)
def test_the_key_that_tells_forms_apart_is_described_by_their_base(table: type[Settings]) -> None:
    key = TABLES[table][0]
    assert key
    bases = [base for base in table.__mro__ if issubclass(base, Settings) and key in base.model_fields]
    _check_sentence(table, key, bases[-1].model_fields[key].description)
    assert form_name(key, table) in get_args(table.model_fields[key].annotation)


def _check_sentence(table: type[Settings], name: str, description: str | None) -> None:
    where = f"{table.__name__}.{name}"
    assert description, f"{where} has no description"
    assert description[0].isupper(), where
    assert description.endswith("."), where
    assert len(description.split()) >= 4, where
    assert not description.startswith(("Of ", "This ", "The others", "As ")), where


class Near(Settings):
    """The form of a table that leaves the key out."""

    kind: Literal["near"] = "near"
    far_away: Annotated[int, ReadIf("steps", bool, "steps is above 0")] = 3
    steps: int = 0


class Far(Settings):
    """The other form."""

    kind: Literal["far"]
    distance: float = Field(default=1.0, gt=0)


class Journey(Settings):
    """A table that may be left out, and one that may not."""

    way: Annotated[Near | Far, Forms("kind")] = Near()
    back: Annotated[Near | Far, Forms("kind")] | None = None


def test_the_form_follows_from_its_key_and_the_default_form_needs_none() -> None:
    assert Journey.model_validate({"way": {}, "back": {"kind": "far"}}) == Journey(way=Near(), back=Far(kind="far"))
    with pytest.raises(ValidationError, match="Extra inputs"):
        Journey.model_validate({"way": {"distance": 2.0}})
    with pytest.raises(ValidationError, match="'near', 'far'"):
        Journey.model_validate({"way": {"kind": "nowhere"}})


def test_a_value_that_nothing_reads_must_be_the_default() -> None:
    assert Near(far_away=3).far_away == Near(far_away=4, steps=1).far_away - 1
    with pytest.raises(ValidationError, match="far_away is read only where steps is above 0"):
        Near(far_away=4)


@pytest.mark.parametrize("items", [(1, 2, 1), ["a", "a"], ((0.5,), (0.5,))])
def test_what_may_be_named_once_is_refused_the_second_time(items: list[object]) -> None:
    with pytest.raises(ValueError, match="is named twice"):
        named_once(items)
    assert named_once(items[:1]) == items[:1]


class Mixed(Settings):
    """Keys of every type."""

    count: int = 1
    limit: int | None = None
    rate: Annotated[float, Field(ge=0)] = 1.0
    pairs: tuple[tuple[float, float], ...] = ()
    wanted: bool = False
    choice: Literal["1", "a"] = "1"
    anything: dict[str, bool | int | str] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("count", True, "number"),
        ("count", "7", "number"),
        ("limit", "7", "number"),
        ("limit", False, "number"),
        ("rate", True, "number"),
        ("rate", b"0.5", "number"),
        ("pairs", [[1, 2], [3, "4"]], "number"),
        ("pairs", ((1.0, True),), "number"),
        ("wanted", "no", "true or false"),
        ("wanted", "true", "true or false"),
        ("choice", 1, "'1' or 'a'"),
    ],
)
def test_a_value_is_not_taken_for_one_of_another_type(key: str, value: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=f"{key}\n  Input should be .*{said}"):
        Mixed.model_validate({key: value})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("count", 2.0, 2),
        ("count", np.int64(2), 2),
        ("limit", None, None),
        ("rate", 2, 2.0),
        ("rate", np.float32(0.5), 0.5),
        ("rate", np.int32(3), 3.0),
        ("pairs", [[1, 2]], ((1.0, 2.0),)),
        ("pairs", np.ones((1, 2)), ((1.0, 1.0),)),
        ("wanted", True, True),
        ("choice", "1", "1"),
        ("anything", {"a": True, "b": "1", "c": 1}, {"a": True, "b": "1", "c": 1}),
    ],
)
def test_numbers_of_other_types_and_libraries_are_taken(key: str, value: Any, expected: Any) -> None:
    found = getattr(Mixed.model_validate({key: value}), key)
    assert (found, type(found)) == (expected, type(expected))
