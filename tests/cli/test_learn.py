"""The command that learns a policy over whole runs."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.screen import Screen, lines_on_screen
from tfkd_fast import api
from tfkd_fast.cli import learn as command
from tfkd_fast.cli.learn import SearchDisplay
from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.errors import UserError
from tfkd_fast.policies.learn import learn_policy
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.steering.control.policy_search import Generation

SMALL = {
    "method": "tfkd",
    "epochs": 2,
    "precision": "fp32",
    "device": "cpu",
    "data": {"dataset": "digits", "batch_size": 64, "per_class": 24, "holdout": 0.5},
    "model": {"width": 0.125},
    "target": {"family": "scalar"},
    "controller": {"cooldown_epochs": 1},
}


def learn(
    out: Path, generations: int, students: int = 4, on_epoch: Callable[[int, int], None] | None = None
) -> list[int]:
    """The numbers of the generations that ran."""
    ran: list[int] = []

    def on_generation(number: int, _: Generation) -> None:
        ran.append(number)

    recipe = make_recipe(SMALL)
    learn_policy(
        recipe, out, generations=generations, students=students, on_generation=on_generation, on_epoch=on_epoch
    )
    return ran


def test_a_search_goes_on_and_its_policy_starts_a_run(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert learn(whole, 2) == [0, 1]
    assert learn(stopped, 1) == [0]
    with (stopped / "generations.jsonl").open("a") as log:
        log.write('{"event": "gener')  # killed while it wrote
    counted: list[tuple[int, int]] = []
    assert learn(stopped, 2, on_epoch=lambda *counts: counted.append(counts)) == [1]
    # Two epochs of four students a generation, each followed by a cooldown of an epoch: an interval is one epoch.
    assert counted == [(16 + 4 * part, 32) for part in range(5)]
    assert learn(stopped, 2) == []
    for name in ("generations.jsonl", "policy.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    lines = [json.loads(line) for line in (whole / "generations.jsonl").read_text().splitlines()]
    assert all(len(line["qualities"]) == 4 and line["best"] == max(line["qualities"]) for line in lines)

    policy = {"controller": {"policy": str(whole / "policy.safetensors")}}
    summary = api.train(make_recipe(SMALL, policy), tmp_path / "run", listeners=[])
    assert summary["method"] == "tfkd"


def test_a_search_that_was_killed_as_it_began_or_before_its_policy_goes_on(tmp_path: Path) -> None:
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    assert learn(whole, 1) == [0]
    policy = (whole / "policy.safetensors").read_bytes()
    (whole / "policy.safetensors").unlink()
    assert learn(whole, 1) == []
    assert (whole / "policy.safetensors").read_bytes() == policy

    begun.mkdir()
    (begun / "generations.jsonl").touch()  # what there is first
    assert learn(begun, 1) == [0]
    assert (begun / "policy.safetensors").read_bytes() == policy
    (begun / "generations.jsonl").write_bytes(b"")  # as during the first generation
    (begun / "data.json").unlink()
    assert learn(begun, 1) == [0]
    assert (begun / "policy.safetensors").read_bytes() == policy
    assert {path.name for path in begun.iterdir()} == {path.name for path in whole.iterdir()}

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "generations.jsonl").write_text("mine")
    with pytest.raises(UserError, match="holds nothing of tfkd-fast"):
        learn(foreign, 1)
    assert (foreign / "generations.jsonl").read_text() == "mine"


def test_another_search_in_the_folder_is_refused(tmp_path: Path) -> None:
    learn(tmp_path / "out", 1)
    path = tmp_path / "out" / "generations.jsonl"
    once = path.read_bytes()
    path.write_bytes(2 * once)  # every line of it is sound
    with pytest.raises(UserError, match=r"generation 0 stands where 1 belongs.*delete its damaged lines and all that"):
        learn(tmp_path / "out", 2)
    path.write_bytes(once)
    with pytest.raises(UserError, match="4 students at a time: give as many"):
        learn(tmp_path / "out", 2, students=5)
    other = make_recipe(SMALL, {"epochs": 3})
    with pytest.raises(UserError, match="holds something else than this search"):
        learn_policy(other, tmp_path / "out", generations=2, students=4, on_generation=lambda *_: None)


@pytest.mark.parametrize("make", [Screen, io.StringIO])
def test_a_search_says_what_it_costs_and_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, make: type[io.StringIO]
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(command, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    file = make()
    with SearchDisplay(Terminal(file, width=80), 3, 4, epochs=10) as display:
        for number in range(1, 3):  # a search that goes on
            for epoch in range(11):
                clock.now += 8.0 * (epoch > 0)
                display.end_epoch(40 * number + 4 * epoch, 120)
            during = lines_on_screen(file.getvalue())
            display.end_generation(number, Generation(0, [], [1.0, 2.0, 3.0, 4.0]))
    plan = "plan: 3 generations of 4 students, 12 runs of 10 epochs, up to 120 student-epochs"
    said = [
        f"{plan}, 40 of these trained; the time is measured in the first epoch",
        f"{plan}, about 3 min left at this speed",  # 76 student-epochs of 2 s
        "generation 2/3 · quality 2.500 in the mean, 4.000 at best · 80 s left",
        "generation 3/3 · quality 2.500 in the mean, 4.000 at best",
    ]
    assert " ".join(" ".join(lines_on_screen(file.getvalue())).split()) == " ".join(said)
    bar = [line for line in during if "━" in line]
    if make is Screen:
        assert bar == [f"generation 3/3 {'━' * 20} 120 of 120 student-epochs · 0 s left"]
    else:
        assert bar == []
