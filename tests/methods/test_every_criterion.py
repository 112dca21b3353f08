"""The methods that a loop of one's own can have are the engine's, one of each kind of needs: a criterion that is shown
what a run computes has the same losses, figures, decisions and rewards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.short_runs import different, tables_of, train
from tests.support.runs import PLACES, log
from tfkd_fast.judging import metrics
from tfkd_fast.methods import METHODS
from tfkd_fast.methods.base import Loss, StepBatch, TeacherOutputs
from tfkd_fast.models import build_model, feature_shapes
from tfkd_fast.own_loop import Criterion, EpochReport
from tfkd_fast.training.trainer import Trainer

REFUSED = (
    *("mmkd", "distpro-search", "professor", "education", "mlkd", "mlkd-ls"),
    *("fsp", "ft", "ab", "ofd", "one", "mixskd"),
)
"""Those that need more than a loop hands over, see tests/own_loop/test_assemble.py."""
EPOCHS = 2
SHORT: dict[str, Any] = {"epochs": EPOCHS, "model": {"width": 0.125}, "data": {"batch_size": 64}}
SELECTS = {"selection": {"criteria": ["holdout-nll", "nll-slope", "holdout-top1"], "candidates": 3}}
OWN: dict[str, dict[str, Any]] = {"tfkd-mrs": SELECTS, "tfkd-extended": SELECTS}


class Companion:
    """A criterion that goes along with a run: it gets what the method of the run gets, and nothing else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.differences: list[float] = []
        self.reports: list[EpochReport] = []
        self._judged: list[tuple[Tensor, Tensor]] = []

    def watch(self, trainer: Trainer) -> None:
        recipe, parts, needs = trainer.recipe, trainer.parts, trainer.parts.method.needs
        facts = [teacher.facts for teacher in parts.teachers.teachers]
        tables = {name: table for name, table in recipe.table().items() if name in type(recipe.options).model_fields}
        if "teachers" in tables:
            tables["teachers"] = {key: value for key, value in tables["teachers"].items() if key == "adjust"}
        self.criterion = Criterion(
            recipe.method,
            num_classes=10,
            epochs=recipe.epochs,
            num_images=parts.images.num_fit,
            batch_size=recipe.data.batch_size,
            learning_rate_ratio=recipe.learning_rate_ratio,
            num_teachers=len(facts),
            teacher_facts=facts if needs.features or needs.specialists else (),
            feature_shapes=feature_shapes(trainer.population.models[0], trainer.dataset.image_shape),
            **tables,
        )
        for mine, its in zip(self.criterion.parameters(), parts.adapters.weights, strict=True):
            assert torch.equal(mine, its)
        self.of_engine, self.needs = parts.method.loss, parts.method.needs
        self._monkeypatch.setattr(parts.method, "loss", self.loss)
        judge = metrics.judge_logits

        def judge_logits(logits: Tensor, labels: Tensor) -> list[metrics.Judgement]:
            self._judged.append((logits, labels))
            return judge(logits, labels)

        self._monkeypatch.setattr(metrics, "judge_logits", judge_logits)
        self._weights = parts.adapters.weights

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        if self._judged and self.differences:
            self.end_epoch()
        self._judged.clear()  # a run judges its teachers before it begins
        with torch.no_grad():
            for mine, its in zip(self.criterion.parameters(), self._weights, strict=True):
                mine.copy_(its)
        of_run = self.of_engine(logits, batch)
        mine = self.call(logits, batch)
        self.differences.append(float((mine - of_run.total).detach().abs().max()))
        (wanted,) = torch.autograd.grad(of_run.total.sum(), logits, retain_graph=True)
        (gradient,) = torch.autograd.grad(mine.sum(), logits, retain_graph=True)
        self.differences.append(float((gradient - wanted).abs().max()))
        return of_run

    def call(self, logits: Tensor, batch: StepBatch) -> Tensor:
        needs, joint = self.needs, self.needs.joint_steps

        def own(tensor: Tensor) -> Tensor:
            return tensor if joint else tensor[0]

        given: dict[str, Any] = {"candidate": 0 if joint else batch.first_candidate}
        if needs.indices:
            given["indices"] = own(batch.indices)
        if needs.features:
            given["features"] = batch.need_features().map(own)
        if needs.slow_decay is not None:
            given["slow_logits"] = own(batch.need_slow_logits())
        if needs.networks:
            given["networks"] = batch.students
        if needs.companions == "same-class":
            given["companions"] = own(batch.need_companions().logits)
        if needs.companions in ("previous", "weak"):
            again = batch.need_companions()
            features = again.features and again.features.map(own)
            columns = own(again.logits), own(again.labels), own(again.indices)
            given["companions"] = type(again)(*columns, features)
        teachers = [
            TeacherOutputs(own(logits), features.map(own)) if features else own(logits)
            for logits, features in batch.teachers
        ]
        return self.criterion(own(logits), own(batch.labels), teachers=teachers, **given)

    def end_epoch(self) -> None:
        (logits, labels), *averaged = self._judged
        self.reports.append(self.criterion.end_epoch(logits, labels, averaged=averaged[0][0] if averaged else None))
        self._judged.clear()


@pytest.mark.parametrize("name", different(name for name in METHODS if name not in REFUSED))
def test_a_criterion_has_the_losses_and_decisions_of_a_run(
    name: str, runs_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    companion = Companion(monkeypatch)
    train(tmp_path, name, tables_of(name, runs_of), SHORT, OWN.get(name, {}), watch=companion.watch)
    companion.end_epoch()
    assert len(companion.differences) >= 2 * EPOCHS * 5
    assert max(companion.differences) <= 1e-6
    lines = log(tmp_path)
    epochs = [line for line in lines if line["event"] == "epoch"]
    results = [result for report in companion.reports for result in report.results]
    assert [result.training.loss for result in results] == [line["train_loss"] for line in epochs]
    assert [100 * result.training.top1 for result in results] == [line["train_top1"] for line in epochs]
    assert [result.training.terms for result in results] == [line["terms"] for line in epochs]
    assert [result.holdout.nll for result in results if result.holdout] == [line["holdout"]["nll"] for line in epochs]
    events = [event for report in companion.reports for event in report.events]
    steered = [line for line in lines if line["event"] in {event.kind for event in events}]
    own = [{"event": event.kind} | json.loads(event.model_dump_json()) for event in events]
    assert own == [{key: line[key] for key in line if key not in {"time", *PLACES}} for line in steered]
    assert bool(own) == ("tfkd" in name or name == "distpro")


@pytest.mark.parametrize("name", ["ols", "tfkd"])
def test_a_plain_loop_has_the_losses_of_a_run_over_an_epoch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's own optimiser, on the same batches; the policy has decided before the first of them."""
    of_run: list[float] = []

    def watch(trainer: Trainer) -> None:
        loss = trainer.parts.method.loss

        def record(logits: Tensor, batch: StepBatch) -> Loss:
            result = loss(logits, batch)
            of_run.append(float(result.total.detach()))
            return result

        monkeypatch.setattr(trainer.parts.method, "loss", record)
        recipe, loader = trainer.recipe, trainer.parts.loader
        network = build_model(recipe.model, 10, trainer.dataset.image_shape[0], recipe.seed)
        optimizer = torch.optim.SGD(network.parameters(), momentum=0.9, weight_decay=recipe.optimizer.weight_decay)
        images = trainer.parts.images.num_fit
        ratio = recipe.learning_rate_ratio
        criterion = Criterion(name, num_classes=10, epochs=recipe.epochs, num_images=images, learning_rate_ratio=ratio)
        for batch, rate in zip(loader.epoch(0), recipe.learning_rates(0, len(loader)), strict=True):
            optimizer.param_groups[0]["lr"] = rate
            loss_here = criterion(network(batch.images), batch.labels, indices=batch.indices)
            optimizer.zero_grad()
            loss_here.backward()
            optimizer.step()
            in_loop.append(float(loss_here.detach()))

    in_loop: list[float] = []
    train(tmp_path, name, SHORT, {"data": {"loader": "resident"}}, watch=watch)
    assert len(in_loop) >= 5
    assert in_loop == pytest.approx(of_run[: len(in_loop)], abs=1e-6)
