"""What a method needs is known from its settings alone, before anything is built."""

from typing import Any

import pytest
import torch

from tests.support.tables import make_table
from tfkd_fast.methods import METHODS, find_method
from tfkd_fast.methods.base import Needs, TeacherCount
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.steering.control import ControllerSettings


def needs(method: str, **tables: Any) -> Needs:
    return find_method(method).needs(make_recipe({"method": method, **tables}).options)


def test_presets_alone_say_what_a_method_needs() -> None:
    extended = METHODS["tfkd-extended"].needs()
    assert (extended.candidates, extended.joint_steps, extended.mixing, extended.own_weights) == (4, True, False, False)
    assert extended.slow_decay == 0.999
    assert METHODS["ce"].needs() == Needs()
    assert METHODS["professor"].needs() == Needs(
        teachers=TeacherCount(1, 1), features=frozenset({"stages"}), material=True
    )


def test_settings_change_what_a_method_needs() -> None:
    assert needs("zipf").features
    assert not needs("zipf", loss={"rank": "logits"}).features
    assert not needs("kd", teachers={"runs": ["a"]}).features
    assert needs("kd", teachers={"runs": ["a"]}, professor={"strategy": "replace"}).features
    assert needs("tfkd").averages == {"epoch"}
    cooled = needs("tfkd", controller={"cooldown_epochs": 2})
    assert (cooled.averages, cooled.cooldown_epochs) == (frozenset(), 2)
    assert needs("tfkd-mrs", selection={"criteria": ["averaged-top1"]}).averages == {"epoch", "interval"}
    beside = needs("tfkd", target={"sources": ["peers"], "peers": 3})
    assert (beside.candidates, beside.own_weights, beside.holdout) == (3, True, True)
    halving = needs("tfkd-mrs", selection={"budget": "halving", "candidates": 4})
    assert halving.candidates == 8  # the first rung of a round has twice as many


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("fixed", {}),
        ("schedule", {}),
        ("progressive", {}),
        ("recorded", {"recorded": [{"start": 0.0, "action": [0.1]}]}),
        ("random", {}),
        ("ppo", {}),
        ("reinforce", {}),
        ("thompson", {}),
        ("ucb", {}),
        ("cma-es", {}),
        ("hypergradient", {}),
    ],
)
def test_images_are_held_out_for_what_learns(name: str, table: dict[str, Any]) -> None:
    learns = name not in ("fixed", "schedule", "progressive", "recorded")
    assert make_table(ControllerSettings, name=name, **table).learns == learns
    assert needs("tfkd", target={"family": "scalar"}, controller={"name": name, **table}).holdout == learns


def test_how_many_teachers_a_method_takes() -> None:
    one, several = METHODS["kd"].needs().teachers, METHODS["mmkd"].needs().teachers
    assert [one.includes(count) for count in range(3)] == [False, True, False]
    assert [several.includes(count) for count in range(4)] == [False, False, True, True]
    assert torch.tensor([entry.needs().specialists for entry in METHODS.values()]).sum() == 2
