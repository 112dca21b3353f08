"""What a finished run becomes as a recipe for all training images, and which runs cannot be replayed."""

from pathlib import Path
from typing import Any

import pytest

from tfkd_fast.errors import Notice, UserError
from tfkd_fast.events import TargetApplied, to_line
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.runs.replay import replay_recipe, replay_table

EPOCHS = 8


def finished(folder: Path, table: dict[str, Any], applied: list[TargetApplied], *, summary: bool = True) -> Path:
    """A run folder as the engine leaves it, as far as a replay reads it."""
    recipe = make_recipe({"epochs": EPOCHS, "seed": 4, **table})
    run = RunFolder(folder)
    run.create(recipe.to_toml())
    run.metrics.write_text("".join(to_line(event, 1.0, number) + "\n" for number, event in enumerate(applied, 1)))
    if summary:
        run.write_json(run.summary, {})
    return folder


def applied(interval: int, first_epoch: int, epochs: int, action: list[float] | None) -> TargetApplied:
    """What the surviving student was trained with over an interval."""
    return TargetApplied(
        interval=interval,
        first_epoch=first_epoch,
        epochs=epochs,
        action=None if action is None else tuple(action),
        learning_rate_factor=1.0 + 0.1 * interval,
        true_mass=0.9,
        divergence=0.1,
    )


LINEAGE = [applied(0, 1, 2, None), applied(1, 3, 3, [0.5] * 5), applied(2, 6, 3, [-0.25] * 5)]


def test_the_recorded_intervals_become_the_controller(tmp_path: Path) -> None:
    target = {"true_mass_min": 0.6, "shared_memory": False}
    tables = {"method": "tfkd-mrs", "target": target, "controller": {"warmup_epochs": 2}, "model": {"width": 0.5}}
    table = replay_table(finished(tmp_path / "run", tables, LINEAGE))
    assert table["controller"] == {
        "name": "recorded",
        "warmup_epochs": 2,
        "recorded": [
            {"start": 2 / EPOCHS, "action": [0.5] * 5, "learning_rate_factor": 1.1},
            {"start": 5 / EPOCHS, "action": [-0.25] * 5, "learning_rate_factor": 1.2},
        ],
    }
    assert (table["method"], table["data"]["holdout"], table["selection"]["budget"]) == ("tfkd", 0.0, "none")
    assert (table["seed"], table["model"]["width"], table["target"]["true_mass_min"]) == (4, 0.5, 0.6)


def test_a_memory_in_common_becomes_one_of_the_student_and_is_told(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", {"method": "tfkd-mrs"}, [applied(0, 1, EPOCHS, [0.5, -0.5, 0.25])])
    with pytest.warns(Notice, match="remembers its own predictions, not those that candidates had in common"):
        replayed = replay_recipe(run)
    assert replayed.method == "tfkd"
    target = replayed.table()["target"]
    assert (target["sources"], target["shared_memory"]) == (["memory"], False)
    assert target["family"] == "scalar"


def test_a_run_that_was_steered_in_nothing_replays_as_itself(tmp_path: Path) -> None:
    tables = {"method": "ce", "selection": {"budget": "full"}, "controller": {"cooldown_epochs": 1}}
    recipe = replay_recipe(finished(tmp_path / "run", tables, []), {"seed": 9})
    expected = make_recipe({"method": "ce", "epochs": EPOCHS, "seed": 9, "data": {"holdout": 0.0}})
    assert recipe == expected
    one_hot = [applied(0, 1, 8, [])]  # interval 0: the factor is 1
    assert replay_recipe(finished(tmp_path / "again", tables, one_hot), {"seed": 9}) == expected


def test_learning_rates_are_recorded_where_nothing_else_was_steered(tmp_path: Path) -> None:
    tables = {"method": "ce", "selection": {"budget": "full"}}
    table = replay_table(finished(tmp_path / "run", tables, [applied(1, 1, 8, None)]))
    assert table["controller"]["recorded"] == [{"start": 0.0, "action": [], "learning_rate_factor": 1.1}]


@pytest.mark.parametrize(
    ("tables", "lineage", "summary", "sentence"),
    [
        ({"method": "tfkd"}, LINEAGE, False, "is not finished: tfkd-fast train --resume"),
        ({"method": "ce", "data": {"holdout": 0.0}}, [], True, "held no images out"),
        ({"method": "tfkd"}, [], True, "is of an older version"),
        ({"method": "tfkd"}, LINEAGE[:2], True, "does not say what its student was taught in epoch 6"),
        ({"method": "tfkd"}, [LINEAGE[0], LINEAGE[2]], True, "does not say what its student was taught in epoch 3"),
        ({"method": "tfkd", "target": {"sources": ["peers"]}}, LINEAGE, True, "predictions of peers"),
    ],
)
def test_a_run_that_cannot_be_replayed_is_refused(
    tables: dict[str, Any], lineage: list[TargetApplied], summary: bool, sentence: str, tmp_path: Path
) -> None:
    run = finished(tmp_path / "run", tables, lineage, summary=summary)
    with pytest.raises(UserError, match=sentence):
        replay_recipe(run)
    with pytest.raises(UserError, match="is no run folder"):
        replay_recipe(tmp_path)
