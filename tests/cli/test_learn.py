"""The command that learns a policy over whole runs."""

import json
from pathlib import Path

import pytest

from tfkd_fast import api
from tfkd_fast.errors import UserError
from tfkd_fast.policies.learn import learn_policy
from tfkd_fast.runs.recipe import make_recipe

SMALL = {
    "method": "tfkd",
    "epochs": 2,
    "precision": "fp32",
    "device": "cpu",
    "data": {"dataset": "digits", "batch_size": 64, "holdout": 0.8},
    "model": {"width": 0.125},
    "target": {"family": "scalar"},
}


def learn(out: Path, generations: int, students: int = 4) -> list[int]:
    """The numbers of the generations that ran."""
    ran: list[int] = []
    recipe = make_recipe(SMALL)
    learn_policy(
        recipe, out, generations=generations, students=students, on_generation=lambda number, _: ran.append(number)
    )
    return ran


def test_a_search_goes_on_and_its_policy_starts_a_run(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert learn(whole, 3) == [0, 1, 2]
    assert learn(stopped, 1) == [0]
    with (stopped / "generations.jsonl").open("a") as log:
        log.write('{"event": "gener')  # killed while it wrote
    assert learn(stopped, 3) == [1, 2]
    assert learn(stopped, 3) == []
    for name in ("generations.jsonl", "policy.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    lines = [json.loads(line) for line in (whole / "generations.jsonl").read_text().splitlines()]
    assert all(len(line["qualities"]) == 4 and line["best"] == max(line["qualities"]) for line in lines)

    policy = {"controller": {"policy": str(whole / "policy.safetensors")}}
    summary = api.train(make_recipe(SMALL, policy), tmp_path / "run", listeners=[])
    assert summary["method"] == "tfkd"


def test_another_search_in_the_folder_is_refused(tmp_path: Path) -> None:
    learn(tmp_path / "out", 1)
    with pytest.raises(UserError, match="4 students at a time: give as many"):
        learn(tmp_path / "out", 2, students=5)
    other = make_recipe(SMALL, {"epochs": 3})
    with pytest.raises(UserError, match="holds something else than this search"):
        learn_policy(other, tmp_path / "out", generations=2, students=4, on_generation=lambda *_: None)
