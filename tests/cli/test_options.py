"""`tfkd-fast options` and the help of all commands: every key and every option, in sentences, on 80 columns."""

import re
from typing import Annotated, Any, Literal, get_args

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

import tfkd_fast
from tests.support.command import refusal, run
from tfkd_fast.cli import app as command
from tfkd_fast.cli.app import app
from tfkd_fast.cli.options import NEEDED, TOP, UNSET, Option, TableOptions, all_tables, options_of
from tfkd_fast.data import DataSettings
from tfkd_fast.methods import METHODS
from tfkd_fast.runs.recipe import core_fields, make_recipe
from tfkd_fast.settings import Forms, ReadIf, Settings, TableForms, table_forms


class Entry(Settings):
    """A table in a list."""

    start: float
    """When it starts."""


class Plain(Settings):
    """A table of one form."""

    share: float = Field(default=0.25, gt=0, le=1)
    """What is said of it
    in two lines."""
    pace: Annotated[float, ReadIf("share", bool, "share is above 0")] = Field(default=2.0, lt=8)
    steps: int = Field(ge=1)
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(1.0, 0.5), min_length=2)
    way: Literal["there", "back"] = "there"
    exact: bool = False
    path: str | None = None
    entries: tuple[Entry, ...] = ()


def test_what_a_key_takes_is_said_in_words() -> None:
    options = [option for key, field in Plain.model_fields.items() for option in options_of(key, field, {"pace": 4})]
    assert [option[:3] for option in options] == [
        ("share", "0.25", "0 < number <= 1"),
        ("pace", "4", "number < 8; read where share is above 0"),
        ("steps", NEEDED, "integer >= 1"),
        ("weights", "[1, 0.5]", "list of at least 2: number >= 0"),
        ("way", "there", "there, back"),
        ("exact", "false", "true, false"),
        ("path", UNSET, "text or unset"),
        ("entries", "[]", "list: tables of start"),
        ("entries[].start", NEEDED, "number"),
    ]
    assert " ".join(options[0].description.split()) == "What is said of it in two lines."
    assert options[-1].description == "When it starts."


class First(Settings):
    """The first form."""

    name: Literal["first"] = "first"
    """Which form it is."""
    shared: int = 1
    """What both have."""
    own: int = 2
    """What this one has."""


class Second(Settings):
    """The second form."""

    name: Literal["second"]
    shared: int = 1
    """What both have."""


class Holder(Settings):
    """A recipe with one table."""

    table: Annotated[First | Second, Forms("name")] = First()


def test_keys_of_all_forms_come_first_and_those_of_some_under_their_names() -> None:
    forms = table_forms(Holder.model_fields["table"])
    assert forms == TableForms("name", (First, Second))
    name = Option("name", "second", "first, second", "Which form it is.")
    shared, own = (
        Option("shared", "1", "integer", "What both have."),
        Option("own", "2", "integer", "What this one has."),
    )
    assert TableOptions("table", "", forms).groups({"name": "second"}) == [((), [name, shared]), (("first",), [own])]


def test_every_key_of_every_table_is_listed_on_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("options").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    printed = "\n".join(lines)
    tables = all_tables()
    for table in tables:
        title = table.name if table.name == TOP else f"[{table.name}]"
        assert f"\n{title}\n" in f"\n{printed}"
        for form in table.forms.classes:
            for key, field in form.model_fields.items():
                assert re.search(rf"^  {key} = ", printed, re.MULTILINE), key
                assert " ".join((field.description or "").split()) in " ".join(printed.split())
    assert {key for table in tables for form in table.forms.classes for key in form.model_fields} >= {
        key for key, field in core_fields().items() if table_forms(field) is None
    }
    for method, entry in METHODS.items():
        shown = {table.name for table in tables if method in table.methods}
        assert shown == set(entry.settings.model_fields)


def test_one_table_is_shown_with_its_forms() -> None:
    printed = run("options", "controller").stdout
    assert printed.startswith("[controller]\n")
    assert "  ucb: A bandit that plays the arm with the highest upper confidence bound.\n" in printed
    assert "\nWhere name is ucb:\n  exploration = 0.5  (number >= 0)\n" in printed
    assert "[data]" not in printed
    assert run("options", "loss").stdout.count("[loss]\n") > 10
    assert refusal("options", "controler") == "error: a recipe has no table 'controler': did you mean 'controller'?"


def test_what_is_listed_can_be_set() -> None:
    """Every key of every form, at its default, by its method."""
    for table in all_tables():
        method = table.methods[0] if table.methods else "tfkd"
        for form in table.forms.classes:
            needed = [key for key, field in form.model_fields.items() if field.is_required() and key != table.forms.key]
            if needed or table.name == TOP:
                continue
            values = form.model_validate({} if table.forms.key is None else {table.forms.key: _name(table, form)})
            given = {table.name: values.model_dump(exclude_none=True)}
            recipe = make_recipe(
                {"method": method if not table.forms.key or table.name != "target" else "tfkd"} | given
            )
            assert getattr(recipe, table.name, None) == values or getattr(recipe.options, table.name) == values


def _name(table: TableOptions, form: type[Settings]) -> str:
    return next(name for name, other in table.forms.names.items() if other is form)


COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_whole_on_80_columns(name: str) -> None:
    printed = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}).output
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in printed
    assert not any(re.search(r"<[\w-]*\|[\w|-]* ", line) for line in lines), "choices are cut within a word"
    for parameter in COMMANDS[name].params:
        if parameter.name == "help":
            continue
        assert parameter.help, f"{name}: {parameter.name} has no help"
        assert parameter.help[0].isupper()
        assert parameter.help.endswith(".")
        assert len(parameter.help.split()) >= 4


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").stdout == f"{tfkd_fast.__version__}\n"


@pytest.mark.parametrize(
    ("choices", "key", "fields"),
    [
        (command.DeviceName, "device", core_fields()),
        (command.PrecisionName, "precision", core_fields()),
        (command.CompileName, "compile", core_fields()),
        (command.PopulationName, "population", core_fields()),
        (command.OpsName, "ops", core_fields()),
        (command.LoaderName, "loader", DataSettings.model_fields),
    ],
)
def test_the_choices_of_an_option_are_those_of_its_key(choices: Any, key: str, fields: Any) -> None:
    """They stand twice, because the command does not wait for what a recipe imports."""
    assert set(get_args(choices)) == set(get_args(fields[key].annotation))
