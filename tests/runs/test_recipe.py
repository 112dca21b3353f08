"""Recipes: precedence, round trip, and a clear sentence for every fault."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.tables import LEARNED
from tfkd_fast.errors import UserError
from tfkd_fast.methods import METHODS, find_method
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.precedence import merge
from tfkd_fast.runs.recipe import load_recipe, make_recipe, parse, read_recipe, shipped_recipes


def test_no_name_and_no_data_set_is_the_digits_recipe() -> None:
    assert load_recipe() == load_recipe("digits")
    assert load_recipe().data.dataset == "digits"


def test_a_data_set_chooses_the_shipped_recipe_of_its_name() -> None:
    assert load_recipe(overrides={"data": {"dataset": "cifar100"}}) == load_recipe("cifar100")
    # one without a shipped recipe starts from the reference recipe
    npz = load_recipe(overrides={"data": {"dataset": "npz", "root": "x.npz"}})
    assert (npz.epochs, npz.data.batch_size, npz.optimizer.learning_rate) == (240, 64, 0.05)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_valid_and_survives_a_round_trip(name: str) -> None:
    recipe = load_recipe(name)
    assert make_recipe(parse(recipe.to_toml(), "round trip")) == recipe


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_recipe_of_a_run_of_every_method_is_a_recipe_file(method: str, tmp_path: Path) -> None:
    recipe = load_recipe("digits", {"method": method})
    file = tmp_path / "recipe.toml"
    file.write_text(recipe.to_toml())
    assert load_recipe(str(file)) == recipe


def test_another_method_starts_from_its_own_presets() -> None:
    table = load_recipe("digits", {"method": "ce"}).table()
    assert table["target"]["family"] == "one-hot"
    assert table["selection"]["budget"] == "none"
    assert table["epochs"] == load_recipe("digits").epochs  # what is not the method's stays


def test_missing_and_malformed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe file 'digit'.*did you mean 'digits'"):
        load_recipe("digit")
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = = 3")
    with pytest.raises(UserError, match=r"broken.toml is not valid TOML"):
        load_recipe(str(broken))


def test_a_study_in_the_place_of_a_recipe_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('seeds = [0]\nbaseline = "a"\n[rows.a]\nmethod = "ce"\n')
    for name in (str(file), "cifar100-reduced"):
        sentence = f"{name} is a study, not a recipe: train it with tfkd-fast study {name}"
        with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
            load_recipe(name)


def test_images_of_ones_own_have_a_recipe_of_moderate_cost() -> None:
    recipe = load_recipe("folder", {"data": {"root": "images"}})
    assert recipe == load_recipe(None, {"data": {"dataset": "folder", "root": "images"}})
    assert find_method(recipe.method).needs(recipe.options).candidates * recipe.epochs <= 30


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("digits").epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(("method", "own"), [("ce", "one-hot"), ("label-smoothing", "label-smoothing")])
def test_a_method_is_what_its_name_says(method: str, own: str) -> None:
    """Whoever sets the family: a file, the command line, or the base of a study."""
    assert make_recipe({"method": method, "target": {"family": own}}).method == method
    for table, overrides in (
        ({"method": method, "target": {"family": "scalar"}}, {}),
        ({"method": method}, {"target": {"family": "scalar"}}),
    ):
        with pytest.raises(UserError, match=rf"method '{method}' is .*, so target\.family cannot be 'scalar'"):
            make_recipe(table, overrides)


@pytest.mark.parametrize(
    ("method", "table", "key", "many"),
    [
        ("ce", "data", "root", False),
        ("kd", "teachers", "runs", True),
        ("kd", "teachers", "cache", False),
        ("distpro", "process", "file", False),
        ("tfkd", "controller", "policy", False),
    ],
)
@pytest.mark.parametrize("path", ["a/b.npz", "../b.npz", "~/b.npz", "/b.npz"])
def test_paths_are_the_same_from_any_folder(
    method: str, table: str, key: str, many: bool, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = {
        "a/b.npz": f"{Path.cwd()}/a/b.npz",
        "../b.npz": f"{Path.cwd()}/../b.npz",
        "~/b.npz": f"{tmp_path}/b.npz",
    }
    data = {"data": {"dataset": "npz"}} if table == "data" else {}
    recipe = make_recipe(merge({"method": method, **data}, {table: {key: [path] if many else path}}))
    found = recipe.table()[table][key]
    assert (found[0] if many else found) == expected.get(path, path)
    if not path.startswith("~"):  # programs have paths of Python's, too
        given = merge({"method": method, **data}, {table: {key: [Path(path)] if many else Path(path)}})
        assert make_recipe(given) == recipe
    assert make_recipe(recipe.table()) == recipe


def test_a_policy_that_comes_with_the_package_stays_a_name() -> None:
    for name in ("", "cifar10"):
        table = {"method": "tfkd", "controller": {"name": "ppo", "policy": name}}
        assert make_recipe(table).table()["controller"]["policy"] == name


@pytest.mark.parametrize(
    ("path", "said"),
    [("~nobody-of-this-name/x", "it is not known what this path is relative to"), ("x\udcff", "this name is no UTF-8")],
)
def test_a_path_that_a_recipe_cannot_hold_is_refused(path: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_recipe({"method": "ce", "data": {"dataset": "npz", "root": path}})


ACROSS = [
    ("ce", "controller", "cooldown_epochs", 3, {"selection": {"budget": "full"}}),
    ("label-smoothing", "controller", "cooldown_epochs", 3, {"selection": {"budget": "full"}}),
    ("ce", "controller", "warmup_epochs", 1, {"target": {"sources": ["memory"]}}),
    ("label-smoothing", "controller", "warmup_epochs", 0, {"target": {"sources": ["slow-self"]}}),
    ("tfkd-extended", "controller", "interval", 2, {"selection": {"budget": "probe"}}),
    ("tfkd-extended", "controller", "interval", 2, {"selection": {"budget": "halving"}}),
    ("tfkd", "controller", "group_buffer", 2, {"selection": {"budget": "probe"}}),
    ("tfkd-mrs", "controller", "single_buffer", 2, {"selection": {"target": "shared"}}),
    ("tfkd-mrs", "controller", "discount", 0.5, {"selection": {"budget": "halving"}}),
    ("tfkd-mrs", "controller", "gae_lambda", 0.5, {"selection": {"budget": "none"}}),
    ("tfkd-mrs", "selection", "target", "shared", {"controller": {"name": "random"}}),
    ("tfkd", "target", "shared_memory", True, {"selection": {"budget": "full"}}),
    ("tfkd-mrs", "target", "peers", 2, {"selection": {"budget": "none"}}),
    ("tfkd-mrs", "selection", "data_order", "shared", {"target": {"sources": ["memory"]}}),
    ("kd", "teachers", "views", 2, {"data": {"augment": True}}),
]
"""A method, a key and a value, and other tables under which it is read."""
BESIDE: dict[str, dict[str, Any]] = {
    "peers": {"target": {"sources": ["peers"]}},
    "data_order": {"target": {"sources": ["peers"]}},
    "views": {"data": {"augment": False}},
    "target": {"controller": {"name": "fixed"}},
    **dict.fromkeys(("group_buffer", "single_buffer", "discount", "gae_lambda"), LEARNED),
}
"""Tables under which a key is unread, where the presets of the method do not do it."""


@pytest.mark.parametrize(("method", "table", "key", "value", "read"), ACROSS)
def test_a_key_that_another_table_leaves_unread_is_refused(
    method: str, table: str, key: str, value: Any, read: Any
) -> None:
    others: dict[str, Any] = BESIDE.get(key, {})
    asked = merge({"method": method, **others}, {table: {key: value}})
    with pytest.raises(UserError, match=rf"recipe key '{table}\.{key}' is read only where .* \(got {value!r}\)"):
        make_recipe(asked)
    assert make_recipe(merge(asked, read)).table()[table][key] == value


def test_a_stored_run_with_such_a_key_is_read_without_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create('method = "ce"\n[controller]\nname = "fixed"\ncooldown_epochs = 3\n')
    assert read_recipe(folder) == make_recipe({"method": "ce"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('method = "mine"', "has the method 'mine', which is none of ce, .*adds it to tfkd_fast.methods.METHODS first"),
        (
            'method = "ce"\n[model]\nname = "mine"',
            "has the network 'mine', which is none of vgg8, .*to tfkd_fast.models.MODELS first",
        ),
        (
            'method = "ce"\n[selection]\nbudget = "full"\ncriteria = ["mine"]',
            "cannot be used here: recipe key 'selection.criteria': unknown criterion 'mine': .* has to be installed",
        ),
    ],
)
def test_a_stored_run_of_what_this_process_does_not_know_is_refused(tmp_path: Path, text: str, said: str) -> None:
    folder = RunFolder(tmp_path)
    folder.create(text)
    with pytest.raises(UserError, match=said):
        read_recipe(folder)


JUDGED = {
    "model": ("name",),
    "data": ("dataset", "augment", "crop", "auto_augment", "mix", "loader"),
    "target": ("sources",),
    "controller": ("policy", "arms"),
    "schedule": ("warmup",),
    "optimizer": ("momentum", "weight_decay"),
}
"""Keys by which it is judged whether others are read."""


@pytest.mark.parametrize("value", [[], {}, ["vgg8"], 1.5, "odd", True], ids=repr)
def test_a_value_of_another_type_is_refused_and_not_judged(value: Any) -> None:
    for table, keys in JUDGED.items():
        for key in keys:
            said = ""
            try:
                load_recipe(None, {"method": "tfkd", table: {key: value}})
            except UserError as refused:
                said = str(refused)
            assert not said or f"{table}.{key}" in said or repr(value) in said
