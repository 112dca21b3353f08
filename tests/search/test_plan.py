"""What a search is, and a sentence for every fault."""

from pathlib import Path
from typing import Any

import pytest

from tfkd_fast.errors import UserError
from tfkd_fast.files import parse_toml
from tfkd_fast.search.plan import Search, load_search, make_search

RECIPE: dict[str, Any] = {"method": "label-smoothing", "epochs": 8, "data": {"dataset": "digits"}}


def search(text: str, recipe: dict[str, Any] = RECIPE, overrides: dict[str, Any] | None = None) -> Search:
    return make_search("made", recipe, parse_toml(text, "s", "", "").get("search"), overrides or {}, "made.toml")


def test_ranges_are_values_of_the_recipe() -> None:
    made = search(
        """
        [search.ranges]
        optimizer.learning_rate = { log = [0.01, 1] }
        "optimizer.momentum" = { float = [0.5, 0.95] }
        data.batch_size = { int = [16, 128] }
        data.augment = { choices = [true, false] }
        model.name = { choices = ["vgg8", "resnet20"] }
        """
    )
    keys = ["optimizer.learning_rate", "optimizer.momentum", "data.batch_size", "data.augment", "model.name"]
    assert [item.key for item in made.ranges] == keys
    recipe = made.recipe(dict(zip(keys, (0.3, 0.6, 17, False, "resnet20"), strict=True)))
    assert (recipe.optimizer.learning_rate, recipe.optimizer.momentum) == (0.3, 0.6)
    assert (recipe.data.batch_size, recipe.data.augment, recipe.model.name) == (17, False, "resnet20")
    assert (recipe.data.dataset, recipe.epochs, recipe.test) == ("digits", 8, True)
    base = made.base
    own = (base.optimizer.learning_rate, base.optimizer.momentum, base.data.batch_size, True, "vgg8")
    assert made.own_values() == dict(zip(keys, own, strict=True))
    assert made.prune_after == 2


def test_a_recipe_outside_of_the_ranges_is_no_trial() -> None:
    assert search("[search.ranges]\nmodel.name = { choices = ['resnet20', 'resnet32'] }").own_values() is None
    assert search("[search.ranges]\npatience = { int = [3, 9] }").own_values() is None


LR = "[search.ranges]\noptimizer.learning_rate = "


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[search.ranges]\noptimizer.lr = { log = [0.1, 1.0] }", "unknown recipe key 'optimizer.lr'"),
        (
            "[search.ranges]\nmethod = { choices = ['ce', 'distpro-search'] }",
            "data.holdout would be 0.2 in place of 0.1 under method 'distpro-search', but all trials are",
        ),
        (LR + "{ log = [0.1, -1.0] }", "the smaller number comes first"),
        (LR + "{ log = [0.0, 1.0] }", "log needs numbers above 0"),
        (LR + "{ float = [-1.0, 1.0] }", "recipe key 'optimizer.learning_rate'"),
        (LR + "{ float = [0.1, inf] }", "a number is needed"),
        (LR + "{ float = [0.1, 'x'] }", "a number is needed"),
        (LR + "{ float = [0.1, 0.2, 0.3] }", "the least and the greatest value"),
        (LR + "{ float = 0.1 }", "a list of two values at least"),
        (LR + "{ uniform = [0.1, 0.2] }", "one of { float = [...]"),
        (LR + "{ float = [0.1, 0.2], log = true }", "one of { float = [...]"),
        (LR + "0.1", "one of { float = [...]"),
        (LR + "{ choices = [0.1, 0.1] }", "0.1 is named twice"),
        (LR + "{ choices = [0.1] }", "a list of two values at least"),
        (LR + "{ choices = [0.1, 'fast'] }", "recipe key 'optimizer.learning_rate'"),
        ("[search.ranges]\ndata.batch_size = { float = [16, 128] }", "recipe key 'data.batch_size'"),
        ("[search.ranges]\ndata.batch_size = { int = [16.5, 128] }", "a whole number is needed"),
        ("[search.ranges]\ndata.batch_size = { int = [0, 128] }", "recipe key 'data.batch_size'"),
        ("[search.ranges]\nmodel.name = { choices = ['vgg8', 'vgg9'] }", "unknown model 'vgg9'"),
        (
            "[search.ranges]\ndata.mix_alpha = { float = [0.1, 0.9] }\ndata.mix = { choices = ['mixup', 'none'] }",
            "'data.mix_alpha' is read only where mix is mixup or cutmix",
        ),
        ("[search.ranges]\nseed = { int = [0, 9] }", "seed cannot be searched: all trials have the same one"),
        ("[search.ranges]\ntest = { choices = [true, false] }", "no trial of a search is tested"),
        ("[search.ranges]\ndata.holdout = { float = [0.1, 0.3] }", "judged by the same held-out images"),
        ("[search.ranges]\ndata.fold = { int = [0, 4] }", "judged by the same held-out images"),
        ("[search]\njudge = 'test'\n" + LR + "{ log = [0.1, 1.0] }", "key 'judge' of [search]"),
        ("[search]\npruner = 1\n" + LR + "{ log = [0.1, 1.0] }", "unknown key 'pruner' of [search]"),
        ("[search]\njudge = 'nll'", "has no 'ranges'"),
        ("[search.ranges]", "names no key"),
        ("search = 3", "[search]"),
    ],
)
def test_a_fault_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        search(text)
    assert str(refused.value).startswith("search made.toml: ")
    assert sentence in str(refused.value)


def test_what_is_searched_needs_held_out_images_and_no_value_of_the_command_line() -> None:
    text = LR + "{ log = [0.1, 1.0] }"
    with pytest.raises(UserError, match=r"set data\.holdout above 0"):
        search(text, RECIPE | {"data": {"dataset": "digits", "holdout": 0.0}})
    with pytest.raises(UserError, match=r"optimizer\.learning_rate is searched: leave it out of the command line"):
        search(text, overrides={"optimizer": {"learning_rate": 0.2}})
    with pytest.raises(UserError, match="recipe key 'epochs'"):
        search(text, RECIPE | {"epochs": 0})


def test_a_recipe_of_distpro_search_keeps_its_table_of_that_name(tmp_path: Path) -> None:
    recipe, ranges = tmp_path / "r.toml", tmp_path / "ranges.toml"
    recipe.write_text('method = "distpro-search"\nteachers.runs = ["t"]\nsearch.learning_rate = 0.5\n')
    ranges.write_text(LR + "{ log = [0.1, 1.0] }")
    settings = load_search(str(recipe), ranges, {}).base.table()["search"]
    assert settings["learning_rate"] == 0.5
    with pytest.raises(UserError, match=r"has no table \[search.ranges\]"):
        load_search(str(recipe), None, {})


def test_the_table_is_in_the_recipe_or_in_a_file_of_its_own(tmp_path: Path) -> None:
    recipe, ranges = tmp_path / "r.toml", tmp_path / "ranges.toml"
    ranges.write_text(LR + "{ log = [0.1, 1.0] }")
    recipe.write_text('method = "ce"\n' + ranges.read_text())
    whole = load_search(str(recipe), None, {})
    assert whole.name == "r"
    with pytest.raises(UserError, match="leave --ranges out"):
        load_search(str(recipe), ranges, {})
    recipe.write_text('method = "ce"\n')
    assert load_search(str(recipe), ranges, {}).record() == whole.record()
    with pytest.raises(UserError, match=r"has no table \[search.ranges\]: add one .* --ranges"):
        load_search(str(recipe), None, {})
    ranges.write_text('method = "ce"\n' + ranges.read_text())
    with pytest.raises(UserError, match=r"unknown key 'method' beside the table \[search\]"):
        load_search(str(recipe), ranges, {})
    with pytest.raises(UserError, match=r"no recipe file 'nowhere\.toml'"):
        load_search("nowhere.toml", ranges, {})


def test_data_that_moved_are_the_same_search(tmp_path: Path) -> None:
    text, recipe = LR + "{ log = [0.1, 1.0] }", RECIPE | {"data": {"dataset": "folder", "root": "here"}}
    here, there = (search(text, recipe, {"data": {"root": str(tmp_path / name)}}).record() for name in ("a", "b"))
    assert here == there
    assert search(text, recipe | {"epochs": 9}).record() != here
