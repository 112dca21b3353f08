"""`tfkd-fast methods`: what it shows is what a recipe takes."""

import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from tests.support.command import refusal, run
from tfkd_fast.cli.app import app
from tfkd_fast.cli.methods import FIXED, NEEDED, UNSET, Option, options_of
from tfkd_fast.methods import METHODS
from tfkd_fast.runs.precedence import set_override
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.settings import Settings


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Table.key -> value."""
    values = {}
    for key, value in table.items():
        values.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return values


def shown(name: str) -> list[Option]:
    entry = METHODS[name]
    return options_of(entry.settings, entry.preset, entry.named_for)


def near(value: Any) -> Any:
    """Numbers are shown to four digits."""
    numbers = value if isinstance(value, tuple) else (value,)
    return pytest.approx(value, rel=1e-3) if all(isinstance(number, float) for number in numbers) else value


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "4000")


@pytest.mark.usefixtures("wide")
def test_the_table_tells_of_every_method_what_it_is_and_of_every_option_its_default() -> None:
    printed = run("methods").stdout
    for name, entry in METHODS.items():
        assert re.search(rf"^│ {name} +│", printed, re.MULTILINE)
        assert f"│ {entry.summary} " in printed
        assert f"│ {entry.source} " in printed
        for option in options_of(entry.settings):
            assert str(option) in printed
    assert re.search(r"│ kd +│ 1 +│", printed)
    assert re.search(r"│ kd-average +│ 2 or more +│", printed)
    assert re.search(r"│ ce +│ none +│", printed)
    assert "sets target.family=label-smoothing controller.name=fixed" in printed


@pytest.mark.usefixtures("wide")
def test_one_method_is_shown_with_all_that_can_be_set() -> None:
    printed = run("methods", "dkd").stdout
    assert "dkd: " in printed
    assert "CVPR 2022; teachers: 1" in printed
    for option in shown("dkd"):
        assert re.search(rf"│ {option.key} +│ {re.escape(option.default)} +│ {re.escape(option.takes)} +│", printed)
    assert re.search(r"│ loss.beta +│ 6 +│ number >= 0 +│", printed)
    assert "Of the label against all other classes together." in printed


def test_the_tables_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in (("methods",), ("methods", "tfkd-extended")):
        lines = run(*command).stdout.splitlines()
        assert all(len(line) <= 80 for line in lines)
        assert not any("…" in line for line in lines), "something was cut off"


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    assert refusal("methods", "kd-avarage") == "error: unknown method 'kd-avarage': did you mean 'kd-average'?"


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_one_of_the_recipe_and_its_default_can_be_set(name: str) -> None:
    plain = flat(make_recipe({"method": name}).options.model_dump())
    options = shown(name)
    assert sorted(option.key for option in options) == sorted(plain)
    for option in options:
        if option.default == UNSET:
            assert plain[option.key] is None
            continue
        overrides: dict[str, Any] = {}
        set_override(overrides, str(option))
        set_again = flat(make_recipe({"method": name}, overrides).options.model_dump())
        assert set_again[option.key] == near(plain[option.key])


def test_what_a_method_is_named_for_takes_nothing_else() -> None:
    takes = {option.key: option.takes for option in shown("ce")}
    assert takes["target.family"] == FIXED
    assert takes["controller.name"].startswith("fixed, schedule, ")
    takes = {option.key: option.takes for option in shown("tfkd")}
    assert takes["target.family"].startswith("one-hot, label-smoothing, ")


class Inner(Settings):
    share: float = Field(default=0.25, gt=0, le=1)
    """What is said of it
    in two lines."""
    pace: float = Field(default=2.0, lt=8)
    steps: int = Field(ge=1)  # without a default
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(1.0, 0.5), min_length=2)


class Outer(Settings):
    inner: Inner = Inner(steps=3)
    beside: Inner | None = None
    tables: tuple[Inner, ...] = ()
    way: Literal["there", "back"] = "there"
    exact: bool = False
    path: str | None = None


def test_what_an_option_takes_is_said_in_words() -> None:
    options = {option.key: option for option in options_of(Outer, {"inner": {"pace": 4}, "way": "back"})}
    assert {key: (option.default, option.takes) for key, option in options.items()} == {
        "inner.share": ("0.25", "0 < number <= 1"),
        "inner.pace": ("4", "number < 8"),
        "inner.steps": ("3", "integer >= 1"),
        "inner.weights": ("[1, 0.5]", "list of at least 2: number >= 0"),
        "beside": (UNSET, "tables of share, pace, steps, weights or unset"),
        "tables": ("[]", "list: tables of share, pace, steps, weights"),
        "way": ("back", "there, back"),
        "exact": ("false", "true, false"),
        "path": (UNSET, "text or unset"),
    }
    assert options["inner.share"].meaning == "What is said of it in two lines."
    assert options["inner.pace"].meaning == ""
    assert {option.key: option.default for option in options_of(Inner)}["steps"] == NEEDED


def test_a_table_that_may_be_left_out_is_opened_where_a_method_presets_it() -> None:
    options = {option.key: option.default for option in options_of(Outer, {"beside": {"steps": 4}})}
    assert [key for key in options if key.startswith("beside")] == [
        "beside.share",
        "beside.pace",
        "beside.steps",
        "beside.weights",
    ]
    assert (options["beside.share"], options["beside.steps"]) == ("0.25", "4")


def test_the_help_of_train_points_here() -> None:
    printed = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    assert "tfkd-fast methods" in printed
