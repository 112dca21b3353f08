"""From specialists to a student, by the engine."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch

from tfkd_fast.engine import load_recipe, train
from tfkd_fast.models import ModelSettings, build_model

MODEL = {"name": "vgg8", "width": 0.125}


def run(out: Path, method: str, epochs: int, classes: str | None = None, **tables: Any) -> dict[str, Any]:
    data = {"batch_size": 64, "loader": "resident"} | ({"classes": classes} if classes else {})
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
    assert epochs[0]["learning_rate"] == epochs[7]["learning_rate"], "it starts again"
    assert epochs[6]["holdout"]["top1"] > epochs[7]["holdout"]["top1"]
    assert summary["best_epoch"] == 8, "until the last grade there is no whole student"
