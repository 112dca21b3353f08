"""A run that continues from an average of candidates: its weights, its batch norm, and what the log says of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.runs import few_images, log, recipe, trainer
from tfkd_fast.judging.metrics import holdout_metrics
from tfkd_fast.methods.base import HoldoutMetrics, IntervalResult, JudgeAverage, Outcome, SteeredMethod

TABLES: dict[str, Any] = {
    "target": {"family": "scalar"},
    "controller": {"name": "fixed"},
    "selection": {"candidates": 3, "interval": 2, "average": "all", "start": 0.5},
}


def test_the_student_is_the_average_with_batch_norm_of_all_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(recipe("tfkd-mrs", epochs=4, **TABLES), tmp_path, few_images())
    method, population, images = run.parts.method, run.population, run.parts.images
    assert isinstance(method, SteeredMethod)
    assert images.holdout is not None
    selects, weights, judged = method.end_interval, {}, []

    def choose_the_average(results: Sequence[IntervalResult], judge: JudgeAverage) -> Outcome:
        outcome = selects(results, judge)
        if len(results) == 1:
            return outcome
        weights.update({name: stack.double().mean(dim=0) for name, stack in population.weights.items()})
        judged.append(judge((2, 0, 1)))
        return replace(outcome, survivors=(1,), averaged=(2, 0, 1))

    monkeypatch.setattr(method, "end_interval", choose_the_average)
    order = images.fit.order(4)
    shown = torch.cat([batch.images for batch in images.fit.visit(order, 4)])
    summary = run.run()
    student = population.models[0]
    assert summary["student_epochs"] == 2 + 3 * 2
    for name, weight in student.named_parameters():
        torch.testing.assert_close(weight, weights[name].float())

    # The statistics of the first norm, from the convolution before it on all training images at once.
    convolution = next(module for module in student.modules() if isinstance(module, nn.Conv2d))
    norm = next(module for module in student.modules() if getattr(module, "running_mean", None) is not None)
    with torch.no_grad():
        maps = convolution(shown).double()
    torch.testing.assert_close(norm.running_mean, maps.mean(dim=(0, 2, 3)).float(), rtol=1e-2, atol=1e-3)

    (metrics,) = holdout_metrics([student], images.holdout, run.compute)
    (line,) = [line for line in log(tmp_path) if line["event"] == "average"]
    assert line["candidates"] == [2, 0, 1]
    assert line["holdout"]["top1"] == pytest.approx(100 * metrics.top1)
    assert line["holdout"]["nll"] == pytest.approx(metrics.nll)
    (before,) = judged  # by fewer images for batch norm, and by weights averaged over the last epoch
    assert isinstance(before, HoldoutMetrics)
    assert before.nll == pytest.approx(metrics.nll, rel=0.2)
