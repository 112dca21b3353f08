"""Study files: rows over a base, in order, and a sentence for every fault."""

from pathlib import Path

import pytest

from tfkd_fast.errors import UserError
from tfkd_fast.methods import METHODS
from tfkd_fast.study import load_study, shipped_studies
from tfkd_fast.study.plan import make_study

BASE = """
seeds = [3, 1]
baseline = "ce"
[base]
epochs = 7
model.width = 0.5
"""
CE = """
[rows.ce]
method = "ce"
"""
KD = """
[rows.kd]
method = "kd"
seed_offset = 10
teachers.runs = ["row:ce", "elsewhere"]
"""


@pytest.mark.parametrize("name", ["compare-small", "compare-mid", "compare-cifar100"])
def test_every_method_is_compared(name: str) -> None:
    compared = {row.recipe(0).method for row in load_study(name).rows.values() if row.replay is None}
    assert compared == set(METHODS)


def test_a_row_refers_to_the_runs_of_another_row() -> None:
    row = make_study("s", BASE + CE + KD).rows["kd"]
    assert row.sources == ["ce"]
    recipe = row.recipe(3, lambda name: f"/runs/{name}-seed3")
    assert recipe.teachers.runs == ("/runs/ce-seed3", str(Path("elsewhere").absolute()))
    assert recipe.seed == 13


def test_a_row_is_its_own_tables_over_the_base_over_its_methods_presets() -> None:
    study = make_study("s", BASE + '[rows.b]\nmethod = "tfkd"\nmodel.width = 0.25\ntitle = "B"\n' + CE)
    assert list(study.rows) == ["b", "ce"]
    assert study.baseline is study.rows["ce"]
    assert (study.rows["b"].title, study.baseline.title) == ("B", "ce")
    recipe = study.rows["b"].recipe(5)
    assert (recipe.method, recipe.seed, recipe.epochs, recipe.model.width) == ("tfkd", 5, 7, 0.25)
    assert recipe.table()["controller"]["policy"] == "default"
    assert study.baseline.recipe(5).model.width == 0.5


def test_the_command_line_is_over_every_row() -> None:
    study = make_study("s", BASE + CE + '[rows.b]\nmethod = "tfkd"\nepochs = 9', {"epochs": 2})
    assert [row.recipe(0).epochs for row in study.rows.values()] == [2, 2]


CONTROLS = {"ce", "label-smoothing", "tfkd", "tfkd-mrs", "ce-mrs"}
SHIPPED = {
    "cifar100": ((0, 1, 2), CONTROLS),
    "cifar100-large": ((2, 3, 4), {"label-smoothing", "tfkd", "tfkd-mrs"}),
    "cifar100-mid": (
        (2, 3, 4, 5, 6),
        {"ce", "label-smoothing", "label-smoothing-250", "by-hand", "tfkd", "tfkd-mrs"},
    ),
    "cifar100-reduced": ((0, 1, 2), CONTROLS),
    "cifar100-reduced-long": ((0, 1, 2, 3, 4), {"ce", "label-smoothing", "label-smoothing-180", "ucb-cooled"}),
    "compare-mid": (
        (0, 1, 2),
        {"kd", "distpro-uniform-short", "residual-moved-short", "mmkd", "folds-professor", "kd-specialists-equal"},
    ),
    "compare-cifar100": ((0, 1, 2), {"ce", "kd", "dkd", "mmkd", "distpro", "professor", "education", "tfkd-mrs"}),
    "compare-small": ((0, 1, 2), {"ce", "kd", "dkd", "mmkd", "distpro", "professor", "education", "tfkd-mrs"}),
    "digits": (tuple(range(10)), {"ce", "label-smoothing", "tfkd", "tfkd-mrs"}),
    "education-caltech256": ((0, 1, 2), {"ce", "kd", "education", "kd-specialists"}),
    "education-food101": ((0, 1, 2), {"ce", "kd", "education", "kd-specialists"}),
    "imagenet": ((0,), {"ce", "tfkd", "kd", "dkd", "distpro", "professor"}),
    "professor": ((0, 1, 2), {"kd", "label-mix", "swap", "professor", "selective", "staged"}),
    "takd": ((0, 1, 2), {"ce", "kd", "takd", "kd-small"}),
    "tiny-imagenet": ((0, 1, 2), {"ce", "tfkd", "tfkd-mrs", "kd", "distpro", "label-mix", "professor"}),
    "warm-start": ((0, 1, 2), {"tfkd", "tfkd-mrs"}),
}


@pytest.mark.parametrize("name", sorted(shipped_studies()))
def test_every_shipped_study_is_valid(name: str) -> None:
    study = load_study(name)
    seeds, rows = SHIPPED[name]
    assert study.seeds == seeds
    assert rows <= study.rows.keys()
    recipes = [row.recipe(0).table() for row in study.rows.values() if row.replay is None]
    assert all(recipe["target"]["family"] == "one-hot" for recipe in recipes if recipe["method"] == "ce")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seeds = = 1", "is not valid TOML"),
        (f'seeds = [0]\nbaseline = "ce"\n[rows.{"x" * 201}]\nmethod = "ce"\n', "has at most 200 bytes"),
        (BASE.replace("seeds", "seed") + CE, "unknown key 'seed': did you mean 'seeds'"),
        (BASE.replace('baseline = "ce"', "") + CE, "it has no 'baseline'"),
        (BASE.replace("[3, 1]", "[]") + CE, "one seed at least"),
        (BASE.replace("[3, 1]", "[3, 1, 3]") + CE, "seed 3 is named twice"),
        (BASE.replace('"ce"', '"cee"') + CE, "the baseline 'cee' is no row: did you mean 'ce'"),
        (BASE, "it has no 'rows'"),
        (BASE + "[rows]", "one row at least"),
        (BASE + CE + '[rows."a/b"]', "row 'a/b' needs a name of letters"),
        (BASE + CE + "[rows.b]\nepoch = 1", "row b: unknown recipe key 'epoch': did you mean 'epochs'"),
        (BASE + CE + '[rows.b]\nmethod = "tfdk"', "row b: unknown method 'tfdk'"),
        (BASE + CE + "[rows.b]\nseed = 1", "row b: its seed is one of the study's"),
        (BASE + CE + '[rows.b]\nreplay = "cee"', "row b: it replays 'cee', which is no row: did you mean 'ce'"),
        (BASE + CE + '[rows.b]\nreplay = "ce"\nepochs = 1', "row b: .* must not set 'epochs'"),
        (BASE + CE + '[rows.b]\nreplay = "ce"\n[rows.c]\nreplay = "b"', "row c: .* is a replay itself"),
        (BASE + CE + "compared = false", "the baseline 'ce' is what all are compared with"),
        (BASE + CE + '[rows.b]\nreplay = "ce"\nseed_offset = 2', "row b: .* must not set 'seed_offset'"),
        (BASE + CE + "shared = true", "row ce: one run for all seeds cannot be compared by seed: set compared = false"),
        (BASE + CE + '[rows.b]\nreplay = "ce"\nshared = true', "row b: .* must not set 'shared'"),
        (
            BASE + CE + KD + "[rows.kd2]\nmethod = 'kd'\nteachers.runs = ['row:ce']\nshared = true\ncompared = false",
            "row kd2: its one run cannot be of every run of 'ce': share that row, too",
        ),
        (BASE + CE + KD.replace("row:ce", "row:cee"), "row kd: it refers to 'cee', which is no row: did you mean 'ce'"),
        (BASE + CE + KD.replace("row:ce", "row:kd"), "row kd: it waits for itself, by way of 'kd'"),
        (
            BASE + CE + KD.replace("row:ce", "row:b") + KD.replace(".kd", ".b").replace("row:ce", "row:kd"),
            "by way of 'b'",
        ),
        (BASE + CE + '[contrasts]\nx = [["ce", "cee"]]', "contrast 'x': 'cee' is no row: did you mean 'ce'"),
        (BASE + CE + "[contrasts]\nx = []", "one pair of rows at least"),
    ],
)
def test_a_fault_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^study s.*{sentence}") as error:
        make_study("s", text)
    assert "\n" not in str(error.value)


def test_what_differs_between_rows_is_not_set_for_all() -> None:
    with pytest.raises(UserError, match="seed cannot be set"):
        make_study("s", BASE + CE, {"seed": 1})
    with pytest.raises(UserError, match=r"no study file 'cifar10x'.*did you mean 'cifar100'"):
        load_study("cifar10x")
    with pytest.raises(UserError, match="no row 'c': did you mean 'ce'"):
        make_study("s", BASE + CE).choose(["c"])


def test_a_recipe_in_the_place_of_a_study_is_told_apart() -> None:
    with pytest.raises(UserError, match=r"^svhn is a recipe, not a study: train it with tfkd-fast train$"):
        load_study("svhn")
    with pytest.raises(UserError, match=r"^mine is a recipe, not a study"):
        make_study("mine", 'method = "ce"\n')
