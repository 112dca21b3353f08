"""What `train` takes as a recipe and as a folder, and that the others go on from what it leaves."""

from pathlib import Path
from typing import Any

import pytest

from tfkd_fast import api
from tfkd_fast.errors import UserError
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.recipe import load_recipe, read_recipe

SMALL: dict[str, Any] = {"method": "ce", "epochs": 1, "device": "cpu", "precision": "fp32", "model": {"width": 0.125}}


def test_a_recipe_may_be_named_written_down_or_made(tmp_path: Path) -> None:
    """All are the recipe of the command line with these values."""
    file = tmp_path / "mine.toml"
    file.write_text(load_recipe("digits", SMALL).to_toml())
    given = {
        "name": ("digits", SMALL),
        "file": (str(file), None),
        "values": (SMALL, None),
        "recipe": (load_recipe("digits", {}), SMALL),
    }
    summaries = {}
    for name, (recipe, overrides) in given.items():
        summaries[name] = api.train(recipe, str(tmp_path / name), overrides=overrides)
        assert read_recipe(RunFolder(tmp_path / name)) == load_recipe("digits", SMALL)
    assert len({summary["test_nll"] for summary in summaries.values()}) == 1


def test_overrides_go_before_the_values_beside_them(tmp_path: Path) -> None:
    api.train(SMALL | {"seed": 1}, tmp_path / "run", overrides={"seed": 2, "model": {"width": 0.25}})
    recipe = read_recipe(RunFolder(tmp_path / "run"))
    assert (recipe.seed, recipe.model.width, recipe.epochs) == (2, 0.25, 1)


def test_bad_values_are_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown recipe key 'model\.widht'"):
        api.train("digits", tmp_path / "run", overrides={"model": {"widht": 1}})
    assert not (tmp_path / "run").exists()


def test_a_run_is_tested_again_from_its_folder_as_text(tmp_path: Path) -> None:
    summary = api.train(SMALL, tmp_path / "run")
    figures = api.evaluate(str(tmp_path / "run"), device="cpu", precision="fp32")
    assert figures["test_nll"] == summary["test_nll"]
    with pytest.raises(UserError, match="is finished"):
        api.resume(str(tmp_path / "run"))
