"""Every method by its name: it learns digits, leaves a log that can be read, and goes on from a checkpoint with the
bits that it would have had."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.methods.short_runs import EPOCHS, different, tables_of, train
from tests.support.runs import CPU, without_clocks
from tfkd_fast.data import make_loader
from tfkd_fast.errors import UserError
from tfkd_fast.judging.metrics import holdout_metrics
from tfkd_fast.methods import METHODS
from tfkd_fast.report import read_run
from tfkd_fast.runs import folder as run_folder

RESUMED = 5
"""After the last promotion of `education`, the first intervals and updates of all, and before the last ones; that a run
goes on from every epoch is shown in tests/training/test_resume.py."""


@pytest.mark.parametrize("name", different(METHODS))
def test_a_run_that_diverges_in_its_very_last_step_ends_as_any_other_that_does(
    name: str, runs_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The update of the only step is in no loss. Nothing that is not finite is written."""
    late: dict[str, Any] = {"epochs": 1, "data": {"batch_size": 512}, "optimizer": {"learning_rate": 1e20}}
    late |= {"professor": {"epochs": 1}} if name == "professor" else {}
    late |= {"meta": {"buffer": 512}} if name == "mmkd" else {}
    late |= {"epochs": 3, "grades": {"promotions": [0.4, 0.7]}} if name == "education" else {}
    with pytest.raises(UserError, match=r"after epoch 1; there is no checkpoint yet: lower optimizer\.learning_rate$"):
        train(tmp_path, name, tables_of(name, runs_of), late)
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_goes_on_from_a_checkpoint(
    name: str, runs_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "KEPT_CHECKPOINTS", EPOCHS)
    tables, whole = tables_of(name, runs_of), tmp_path / "whole"
    trainer = train(whole, name, tables)
    digits, settings = trainer.dataset, trainer.recipe.data
    loader = make_loader(digits.read_test(), digits, settings, CPU.device, CPU.dtype, seed=0)
    (metrics,) = holdout_metrics([trainer.population.models[0]], loader, CPU)
    start = read_run(whole).start
    assert start.method == name  # a log that its report can be made of
    assert start.planned_student_epochs == trainer.state.student_epochs
    assert metrics.top1 > 0.25  # chance is 0.10 with a standard error of 0.016
    part = tmp_path / "resumed"
    shutil.copytree(whole, part)
    (part / "student.safetensors").unlink()
    for later in range(RESUMED + 1, EPOCHS + 1):
        (part / "checkpoints" / f"epoch-{later:05d}.ckpt").unlink()
    train(part, name, tables)
    assert (part / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    assert without_clocks(part) == without_clocks(whole)
