"""Judging candidates after a cooldown: what is judged, and that nothing of it stays behind."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.runs import CPU, log, recipe, trainer, without_clocks
from tfkd_fast.data import open_dataset
from tfkd_fast.judging.metrics import holdout_metrics
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import Listener
from tfkd_fast.training.trainer import Trainer


def smoothed(true_mass: float) -> torch.Tensor:
    """(10,10), a row a label."""
    return torch.full((10, 10), (1 - true_mass) / 9).fill_diagonal_(true_mass)


def test_what_is_judged_is_a_copy_trained_to_the_end_by_hand(tmp_path: Path) -> None:
    """An epoch by the action, then two by label smoothing 0.1 while the rate falls to zero."""
    controller = {"name": "random", "cooldown_epochs": 2}
    run = trainer(recipe("tfkd", target={"sources": []}, controller=controller), tmp_path)
    model, images = copy.deepcopy(run.population.models[0]).train(), run.parts.images
    run.run()
    events = log(tmp_path)
    first, second = (event for event in events if event["event"] == "decision")
    taught, neutral = (smoothed(mass) for mass in (first["candidates"][0]["true_mass"], 0.9))
    rate, steps = 0.05, len(images.fit)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    for epoch, table in enumerate((taught, neutral, neutral)):
        for step, batch in enumerate(images.fit.epoch(epoch)):
            if epoch:
                optimizer.param_groups[0]["lr"] = rate * (1 - ((epoch - 1) * steps + step) / (2 * steps))
            optimizer.zero_grad()
            F.cross_entropy(model(batch.images), table[batch.labels]).backward()
            optimizer.step()
    assert images.holdout is not None
    (expected,) = holdout_metrics([model], images.holdout, CPU)
    assert second["progress"]["holdout_top1"] == pytest.approx(expected.top1, abs=1.01 / images.num_holdout)
    assert second["progress"]["holdout_nll"] == pytest.approx(expected.calibrated_nll, rel=1e-3)
    uncooled = next(event for event in events if event["event"] == "epoch")["holdout"]["calibrated_nll"]
    assert abs(uncooled - expected.calibrated_nll) > 0.01  # so that the test could fail


@pytest.mark.parametrize("selection", [{"budget": "none"}, {"candidates": 2, "interval": 2, "criteria": ["nll-slope"]}])
def test_training_goes_on_as_if_there_had_been_none(tmp_path: Path, selection: dict[str, Any]) -> None:
    """Actions drawn at random and a ranking of the uncooled figures do not hear of it: weights and log are the same."""
    target = {"family": "rank-binned", "sources": ["memory", "slow-self"], "slow_self_decay": 0.9}
    plain, cooled = tmp_path / "plain", tmp_path / "cooled"
    for folder, epochs in ((plain, 0), (cooled, 1)):
        controller = {"name": "random", "warmup_epochs": 1, "cooldown_epochs": epochs}
        trainer(recipe("tfkd-mrs", epochs=4, target=target, controller=controller, selection=selection), folder).run()
    assert (plain / "student.safetensors").read_bytes() == (cooled / "student.safetensors").read_bytes()
    kinds = ("epoch", "target", "selection")
    without, with_it = ([event for event in without_clocks(of) if event["event"] in kinds] for of in (plain, cooled))
    for event in (*without, *with_it):
        event.pop("values", None)  # of the criteria: all but the slope are those of the cooled
        event.pop("student_epochs", None)  # those of cooldowns are counted
    assert without == with_it


def test_the_epochs_of_a_cooldown_are_counted_and_shown_to_nobody(tmp_path: Path) -> None:
    shown: list[int] = []

    class Watching(Listener):
        def batch(self, images: int) -> None:
            shown.append(images)

    settings = recipe("tfkd", controller={"cooldown_epochs": 3})
    run = Trainer(settings, open_dataset(settings.data), CPU, RunFolder(tmp_path), [Watching()])
    run.folder.create(settings.to_toml())
    images = run.parts.images.num_fit
    assert run.run()["student_epochs"] == 2 * (1 + 3)
    assert sum(shown) == 2 * images
