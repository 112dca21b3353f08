"""The examples of docs/architecture.md are what they say: a method, a network and a controller that train."""

import re
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tfkd_fast
from tests.methods.steps import assert_teaches, build, random_step
from tfkd_fast import models
from tfkd_fast.methods import METHODS, MethodEntry
from tfkd_fast.steering.control import settings as control_settings
from tfkd_fast.steering.control.controller import Progress
from tfkd_fast.steering.targets import ScalarTarget
from tfkd_fast.steering.targets.true_mass import TrueMassRange

PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
SMALL = {"epochs": 3, "device": "cpu", "model": {"width": 0.125}}


@pytest.fixture
def example() -> Callable[[str], dict[str, Any]]:
    """Runs the one example that has a text in it; gives its names."""

    def run(text: str) -> dict[str, Any]:
        indented = re.findall(r"^    ```python\n(.*?)^    ```", PAGE, re.DOTALL | re.MULTILINE)
        (program,) = [textwrap.dedent(program) for program in indented if text in program]
        names: dict[str, Any] = dict(vars(control_settings)) if "(ControllerBase)" in text else {}
        exec(compile(program, "architecture.md", "exec"), names)
        return names

    return run


def test_the_method_computes_the_focal_loss_and_trains(
    example: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = example("class Focal(SingleStudent)")
    monkeypatch.setitem(
        METHODS, "focal", MethodEntry("focal loss", "Lin et al.", names["FocalSettings"], names["Focal"])
    )
    logits, batch = random_step(0)
    chosen = logits.softmax(-1).gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
    assert_teaches(build("focal", gamma=1.5), logits, batch, (-((1 - chosen) ** 1.5) * chosen.log()).mean(-1), 1e-6)
    plain = torch.stack([F.cross_entropy(*pair) for pair in zip(logits, batch.labels, strict=True)])
    assert_teaches(build("focal", gamma=0.0), logits, batch, plain, 1e-6)
    summary = tfkd_fast.train("digits", tmp_path / "run", overrides={**SMALL, "method": "focal"})
    assert summary["test_top1"] > 25  # chance is 10


def test_the_network_has_the_size_that_it_says_and_trains(
    example: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain3 = example("def plain3(")["plain3"]
    assert f"{sum(p.numel() for p in plain3(100).parameters()):,} parameters for 100 classes" in plain3.__doc__
    monkeypatch.setitem(models.MODELS, "plain3", plain3)
    logits, features = plain3(10, in_channels=1)(torch.randn(2, 1, 32, 32), return_features=True)
    assert [maps.shape[1:] for maps in features.after_relu] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert logits.shape == (2, 10)
    overrides = {**SMALL, "epochs": 1, "method": "ce", "model": {"name": "plain3"}}
    tfkd_fast.train("digits", tmp_path / "run", overrides=overrides)
    assert isinstance(tfkd_fast.load_run(tmp_path / "run").student(), torch.nn.Module)


def test_the_controller_sets_two_masses_in_turn(
    example: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(10, *(0.5 for _ in range(11)))
    table = example("class AlternatingSettings(ControllerBase)")["AlternatingSettings"]
    monkeypatch.setattr(control_settings, "AlternatingSettings", table, raising=False)
    make = partial(
        example("class AlternatingController(Controller)")["AlternatingController"], table(name="alternating")
    )
    target = ScalarTarget(TrueMassRange(0.5, 0.999))
    controller = make(target)
    actions = [controller.decide(progress, 2).actions for _ in range(3)]
    assert torch.equal(actions[0], target.action_for_true_mass(0.95).repeat(2, 1))
    assert torch.equal(actions[1], target.action_for_true_mass(0.7).repeat(2, 1))
    assert torch.equal(actions[0], actions[2])
    resumed = make(target)
    resumed.load_state_dict(controller.state_dict())
    assert torch.equal(resumed.decide(progress, 2).actions, actions[1])
