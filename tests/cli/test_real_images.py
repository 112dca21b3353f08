"""Training on real CIFAR-10 images."""

import json
from pathlib import Path

import pytest

from tests.support.command import run


@pytest.mark.parametrize("method", ["ce", "tfkd-mrs"])
def test_a_narrow_student_learns_real_images(real_cifar10: Path, tmp_path: Path, method: str) -> None:
    settings = ["model.width=0.125", "schedule.name=one-cycle"]
    if method == "tfkd-mrs":
        settings += ["selection.interval=2", "selection.candidates=2"]
    arguments = ["train", "--dataset", "npz", "--data-root", real_cifar10, "--method", method, "--epochs", "3"]
    arguments += ["--batch-size", "32", "--device", "cpu", "--precision", "fp32", "--out", tmp_path / "run"]
    for assignment in settings:
        arguments += ["--set", assignment]
    run(*arguments)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["train_images"], summary["holdout_images"], summary["test_images"]) == (1800, 200, 2000)
    # Chance is 10 %; with 2,000 test images, 25 % is over twenty standard errors above it.
    assert summary["test_top1"] > 25
