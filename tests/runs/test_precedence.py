"""Levels of a recipe: which value holds, and what a higher level leaves behind."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.tables import LEARNED
from tfkd_fast.errors import UserError
from tfkd_fast.methods import find_method
from tfkd_fast.runs.precedence import Table, merge, set_override
from tfkd_fast.runs.recipe import load_recipe, make_recipe, resolve_levels


def test_command_line_over_file_over_method_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('method = "tfkd-mrs"\nepochs = 7\n[selection]\ncandidates = 3\ninterval = 2\n')
    recipe = load_recipe(str(file), {"selection": {"interval": 4}})
    assert recipe.epochs == 7
    selection = recipe.table()["selection"]
    assert (selection["budget"], selection["candidates"], selection["interval"]) == ("full", 3, 4)


def test_set_reads_toml_values_and_bare_words() -> None:
    overrides: dict[str, object] = {}
    for assignment in ("model.width=0.5", "schedule.name=cosine", "tensorboard=true", 'data.root="a b"'):
        set_override(overrides, assignment)
    assert overrides == {
        "model": {"width": 0.5},
        "schedule": {"name": "cosine"},
        "tensorboard": True,
        "data": {"root": "a b"},
    }


@pytest.mark.parametrize(
    "text", ["2024", "2024_05", "0x10", "1e3", "1.50", "nan", "2024-05-01", "2024-05-01 10:00", "10:00:00", "0-4"]
)
def test_a_key_that_wants_text_gets_it_as_it_was_written(text: str) -> None:
    overrides: Table = {"method": "kd"}
    set_override(overrides, f"teachers.cache={text}")
    set_override(overrides, f"data.classes={text}")
    recipe = make_recipe({}, overrides)
    assert recipe.teachers.cache == str(Path.cwd() / text)
    assert recipe.data.classes == (text,)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("epochs=1_000", 1000),
        ("data.holdout=.25", 0.25),
        ("optimizer.learning_rate=5.", 5.0),
        ("data.augment=False", False),
        ("data.augment=true", True),
        ("data.holdout=0", 0.0),
    ],
)
def test_a_key_that_wants_a_number_or_a_bool_gets_that(assignment: str, expected: object) -> None:
    overrides: Table = {}
    set_override(overrides, assignment)
    recipe: Any = make_recipe({}, overrides)
    for key in assignment.partition("=")[0].split("."):
        recipe = getattr(recipe, key)
    assert (recipe, type(recipe)) == (expected, type(expected))


@pytest.mark.parametrize("assignment", ["epochs", "=3", "model..width=1"])
def test_a_malformed_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(UserError, match=r"--set wants table.key=value"):
        set_override({}, assignment)


def test_another_form_on_the_command_line_leaves_behind_what_it_does_not_read() -> None:
    """Whether the key stands in the file or in a preset; keys that both forms read are kept."""
    file = {
        "controller": {"name": "ppo", "clip": 0.3, "top1_share": 0.8, "warmup_epochs": 2},
        "selection": {"candidates": 3},
    }
    switched = make_recipe(file, {"controller": {"name": "ucb"}, "selection": {"budget": "none"}}).table()
    assert (
        switched["controller"]
        == make_recipe({"controller": {"name": "ucb", "top1_share": 0.8, "warmup_epochs": 2}}).table()["controller"]
    )
    assert switched["selection"] == {"budget": "none"}
    mixed = {"data": {"mix": "mixup", "mix_alpha": 0.2}}
    assert make_recipe(mixed, {"data": {"mix": "none"}}).data.mix_alpha == 1.0
    assert make_recipe(mixed, {"data": {"mix": "cutmix"}}).data.mix_alpha == 0.2


@pytest.mark.parametrize("file", [{}, {"controller": {"top1_share": 0.8}}, {"controller": {"name": "policy"}}])
def test_another_form_starts_without_what_a_preset_says_of_its_own(file: Table) -> None:
    """The policy that `tfkd` plays is none that PPO starts from; what every target reads stays."""
    own = make_recipe({"method": "tfkd"}).table()
    assert own["controller"]["policy"] == "default"
    assert own["target"]["sources"] == ["memory"]
    switched = {"controller": {"name": "ppo"}, "target": {"family": "rank-binned"}}
    changed = make_recipe({"method": "tfkd", **file}, switched).table()
    assert changed["controller"]["policy"] == ""
    assert (changed["target"]["sources"], changed["target"]["source_share"]) == (["memory"], 0.05)
    back = make_recipe({"method": "tfkd", **switched}, {"controller": {"name": "policy"}}).table()
    assert back["controller"] == own["controller"]


UNREAD = [
    ("tfkd", "controller", "interval", 2, {"selection": {"budget": "full"}}),
    ("tfkd", "controller", "discount", 0.5, {"selection": {"budget": "full"}}),
    ("tfkd-mrs", "controller", "group_buffer", 2, {"selection": {"budget": "none"}}),
    ("tfkd-mrs", "controller", "warmup_epochs", 1, {"target": {"family": "scalar"}}),
    (
        "tfkd-mrs",
        "controller",
        "cooldown_epochs",
        1,
        {"selection": {"budget": "none"}, "controller": {"name": "fixed"}},
    ),
    ("tfkd-mrs", "selection", "target", "shared", {"controller": {"name": "progressive"}}),
    ("kd", "teachers", "views", 3, {"data": {"augment": False}}),
]
"""A method, a key that it reads, with a value, and other tables that leave the key unread."""


def test_a_controller_that_learns_decides_more_than_once_in_place_of_the_preset_one() -> None:
    """Candidates of `tfkd-mrs` are ranked once, at the end of a run; one that learns decides between two rankings."""
    assert find_method("tfkd-mrs").preset["selection"]["interval"] == 0
    for controller in ("ppo", "ucb", "cma-es"):
        recipe = make_recipe({"method": "tfkd-mrs", "epochs": 25, "controller": {"name": controller}})
        assert recipe.table()["selection"]["interval"] == 5
        assert recipe.table()["selection"]["candidates"] == 2
    chosen = {"controller": {"name": "ppo"}, "selection": {"interval": 0}}
    assert make_recipe({"method": "tfkd-mrs", **chosen}).table()["selection"]["interval"] == 0
    other = {"controller": {"name": "policy", "policy": "mine"}}
    assert make_recipe({"method": "tfkd-mrs", **other}).table()["selection"]["interval"] == 0


@pytest.mark.parametrize(("method", "table", "key", "value", "choice"), UNREAD)
def test_what_another_table_leaves_unread_is_dropped_below_it_and_refused_beside_it(
    method: str, table: str, key: str, value: Any, choice: Table
) -> None:
    """Also where the levels are those of a study: base, row and command line."""
    learned = LEARNED if method in ("tfkd", "tfkd-mrs") else {}
    file, asked = {"method": method, "epochs": 40, **learned}, {table: {key: value}}
    with_key = merge(file, asked)
    assert make_recipe(with_key).table()[table][key] == value
    expected = make_recipe(file, choice)
    assert make_recipe(with_key, choice) == expected
    for levels in ((with_key, choice, {}), (file, asked, choice), ({}, with_key, choice)):
        assert make_recipe(resolve_levels(*levels)) == expected
    for levels in (
        (merge(with_key, choice), {}, {}),
        (merge(file, choice), asked, {}),
        (merge(file, choice), {}, asked),
        (file, merge(choice, asked), {"epochs": 50}),
        (file, choice, asked),
    ):
        with pytest.raises(UserError, match=rf"^recipe key '{table}\.{key}' is read only where .* \(got {value!r}\)$"):
            make_recipe(resolve_levels(*levels))


def test_a_key_of_a_level_is_judged_by_the_presets_of_its_method() -> None:
    """Presets lie below every level, so that a key which they leave unread is refused."""
    with pytest.raises(UserError, match=r"'controller.interval' is read only where the controller plays a policy"):
        make_recipe(resolve_levels({"controller": {"interval": 2}}, {"method": "tfkd-extended"}))
    read = make_recipe(resolve_levels({"controller": {"interval": 2}}, {"method": "tfkd"}))
    assert read.table()["controller"]["interval"] == 2


@pytest.mark.parametrize(
    ("file", "overrides"),
    [
        ({"controller": {"name": "ucb", "clip": 0.3}}, {"controller": {"name": "thompson"}}),
        ({"controller": {"name": "ucb"}}, {"controller": {"clip": 0.3}}),
        ({"controller": {"name": "ppo", "clip": 0.3}}, {"controller": {"name": "ucb", "epochs": 3}}),
    ],
)
def test_a_level_answers_for_its_own_keys(file: Table, overrides: Table) -> None:
    """Only what was right before a higher level chose another form is left behind."""
    with pytest.raises(UserError, match="unknown recipe key 'controller"):
        make_recipe(file, overrides)
