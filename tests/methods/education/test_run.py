"""From specialists to a student, by the engine."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tfkd_fast.api import train
from tfkd_fast.data import DataSettings, make_loader, open_dataset, split_holdout
from tfkd_fast.device import Compute
from tfkd_fast.judging.metrics import predict
from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.runs.recipe import load_recipe
from tfkd_fast.runs.student import load_student

MODEL = {"name": "vgg8", "width": 0.125}


def run(
    out: Path, method: str, epochs: int, classes: str | None = None, batch_size: int = 64, **tables: Any
) -> dict[str, Any]:
    data = {"batch_size": batch_size, "loader": "resident"} | ({"classes": classes} if classes else {})
    shared = {"device": "cpu", "precision": "fp32", "schedule": {"name": "one-cycle"}, "model": MODEL, "data": data}
    recipe = load_recipe("digits", shared | {"method": method, "epochs": epochs} | tables)
    return train(recipe, out, listeners=[])


def test_a_student_of_two_specialists(tmp_path: Path) -> None:
    runs = [str(tmp_path / name) for name in ("even", "odd")]
    for out, classes in zip(runs, ("0,2,4,6,8", "1,3,5,7,9"), strict=True):
        assert run(Path(out), "ce", 1, classes)["train_images"] < 700
    out = tmp_path / "student"
    summary = run(out, "education", 8, teachers={"runs": runs}, grades={"promotions": [0.85]})
    assert summary["teachers"] == ["even", "odd"]
    plain = build_model(ModelSettings(**MODEL), 10, 1, seed=0).state_dict()
    student = safetensors.torch.load_file(out / "student.safetensors")
    assert {name: tensor.shape for name, tensor in student.items()} == {name: t.shape for name, t in plain.items()}
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    grades = [event for event in events if event["event"] == "grade"]
    assert [(grade["first_epoch"], grade["labels"]) for grade in grades] == [(1, [0, 2, 4, 6, 8]), (8, list(range(10)))]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [epoch["holdout_classes"] for epoch in epochs] == [5] * 7 + [10]
    assert epochs[6]["holdout"]["nll"] < math.log(5), "classes that are not known yet do not count"
    assert epochs[0]["learning_rate"] == epochs[7]["learning_rate"], "it starts again"
    assert epochs[6]["holdout"]["top1"] > epochs[7]["holdout"]["top1"]
    assert summary["best_epoch"] == 8, "until the last grade there is no whole student"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "all"
    run(out, "ce", 1)
    return out


@pytest.mark.parametrize("replay", [True, False])
def test_what_is_taught_no_more_is_forgotten(teacher: Path, tmp_path: Path, replay: bool) -> None:
    """By the labels alone, so that the teacher need not know much."""
    tables = {
        "teachers": {"runs": [str(teacher)]},
        "grades": {"groups": ["0-4", "5-9"], "promotions": [0.5], "replay": replay},
        "loss": {"alpha": 0.0},
    }
    summary = run(tmp_path / "out", "education", 6, batch_size=16, **tables)
    log = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    groups = [event for event in log if event["event"] == "groups"]
    assert [(event["epoch"], event["grade"]) for event in groups] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
    assert all(event["holdout_top1"][1] is None for event in groups[:3])
    assert groups[2]["holdout_top1"][0] > 60
    assert summary["group_top1"] == groups[5]["holdout_top1"]
    assert summary["group_forgetting"][1] == 0
    lost = groups[2]["holdout_top1"][0] - groups[5]["holdout_top1"][0]
    assert summary["group_forgetting"][0] == pytest.approx(max(lost, 0.0))
    assert (summary["group_forgetting"][0] > 50) != replay
    assert summary["group_top1"] == pytest.approx(accuracies(tmp_path / "out"))


def accuracies(out: Path) -> list[float]:
    """Of the student of a run on the held-out images of either group, in percent: the mean over the classes."""
    settings, compute = DataSettings(loader="resident"), Compute(torch.device("cpu"), torch.float32)
    digits = open_dataset(settings)
    _, holdout = split_holdout(digits.read_train(), settings.holdout)
    loader = make_loader(holdout, digits, settings, compute.device, compute.dtype, seed=0)
    student = load_student(out / "student.safetensors", ModelSettings(**MODEL), 10, (1, 32, 32))
    logits, labels = predict(student, loader.in_order(), compute)
    right = logits.argmax(1) == labels
    by_class = [100 * float(right[labels == label].double().mean()) for label in range(10)]
    return [sum(by_class[:5]) / 5, sum(by_class[5:]) / 5]


def test_a_student_that_sees_group_after_group_learns_them_all(teacher: Path, tmp_path: Path) -> None:
    """By the schedule of the paper, with heads that go on: grades begin after 7 and 9 of 12 epochs."""
    tables = {
        "teachers": {"runs": [str(teacher)]},
        "grades": {"schedule": "paper", "order": "sequential", "heads": "inherited"},
        "loss": {"alpha": 0.0},
    }
    summary = run(tmp_path / "out", "education", 12, batch_size=16, **tables)
    log = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [event["first_epoch"] for event in log if event["event"] == "grade"] == [1, 8, 10]
    assert summary["test_top1"] > 40  # the last group alone is 40, and chance 10
