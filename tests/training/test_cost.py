"""What a run says at its start that it will cost is what it has cost at its end, whoever plans its intervals."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.runs import log, recipe, trainer
from tfkd_fast.data import Dataset, open_dataset

EPOCHS = 8
COOLED = {"controller": {"cooldown_epochs": 1}}  # after two epochs of warm-up
PROBES = {"budget": "probe", "candidates": 2, "interval": 2, "events": [0.3, 0.4, 0.9]}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "one student": ("tfkd", {"controller": {"cooldown_epochs": 1, "warmup_epochs": 0, "interval": 3}}, 8 + 3),
    "events": ("tfkd-mrs", {"selection": PROBES, **COOLED}, 3 + 2 + 6 + 6 + 2),
    "halving": ("tfkd-mrs", {"selection": {"budget": "halving", "candidates": 2}, **COOLED}, 3 + 2 * (8 + 6)),
    "no action": ("ce", {"selection": {"budget": "full", "candidates": 2, "interval": 3}}, 16),
    "peers": ("tfkd", {"target": {"sources": ["peers"], "peers": 2}, "controller": {"name": "fixed"}}, 16),
}
"""What a run of 8 epochs trains: the epochs of its candidates, and one more for each that is cooled down."""


def tiny() -> Dataset:
    digits = open_dataset(recipe("ce").data)
    images = digits.read_train().subset(torch.arange(0, len(digits.read_train()), 16))
    return Dataset(
        "digits", digits.classes, digits.image_shape, flip=False, read_train=lambda: images, read_test=digits.read_test
    )


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_what_is_trained(tmp_path: Path, case: str) -> None:
    method, tables, cost = CASES[case]
    summary = trainer(recipe(method, epochs=EPOCHS, **tables), tmp_path, tiny()).run()
    assert (summary["planned_student_epochs"], summary["student_epochs"]) == (cost, cost)
    events = log(tmp_path)
    assert events[0]["planned_student_epochs"] == cost
    counted = [event["student_epochs"] for event in events if event["event"] == "epoch"]
    assert counted == sorted(counted)
    assert counted[-1] <= cost
