"""Every method by its name: it learns digits, leaves a log that can be read, and goes on from a checkpoint with the
bits that it would have had."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_resume import few_images, without_clocks
from tfkd_fast.data import Dataset, make_loader
from tfkd_fast.data.datasets.some_classes import SomeClasses
from tfkd_fast.device import Compute
from tfkd_fast.judging.metrics import metrics_of
from tfkd_fast.methods import METHODS
from tfkd_fast.report import read_run
from tfkd_fast.runs import folder as run_folder
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.recipe import load_recipe, merge
from tfkd_fast.training.trainer import Trainer

CPU = Compute(torch.device("cpu"), torch.float32)
EPOCHS = 8
SMALL: dict[str, Any] = {
    "epochs": EPOCHS,
    "data": {"batch_size": 32, "holdout": 0.2, "loader": "resident"},
    "model": {"width": 0.125},
    "schedule": {"name": "one-cycle"},
}
MRS = {"selection": {"candidates": 2, "interval": 2}}
LINEAR = {"transforms": ["identity-1x1"]}
OWN: dict[str, dict[str, Any]] = {
    "tfkd-mrs": MRS,
    "tfkd-extended": MRS,
    "professor": {"professor": {"epochs": 5}},
    "distpro-search": {"pathways": LINEAR, "search": {"record_every": 5}},
    "distpro": {"pathways": LINEAR},
    "education": {"grades": {"promotions": [0.125, 0.25]}, "loss": {"self_reference": 0.5}},
    "mmkd": {"meta": {"buffer": 32, "period": 2}, "loss": {"beta": 1.0}},
}
"""What a short run needs beside its name."""
SPECIALISTS = {"low": range(5), "high": range(5, 10)}


def train(out: Path, method: str, *tables: dict[str, Any], dataset: Dataset | None = None) -> Trainer:
    """A run in `out`, or what is left of it."""
    overrides: dict[str, Any] = {"method": method}
    for table in (SMALL, *tables):
        overrides = merge(overrides, table)
    recipe, folder = load_recipe(None, overrides), RunFolder(out)
    trainer = Trainer(recipe, dataset or few_images(), CPU, folder, [])
    if not folder.recipe.exists():
        folder.create(recipe.to_toml())
    trainer.run()
    return trainer


@pytest.fixture(scope="module")
def runs_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What other runs need, by name, each trained once: the teachers t0, t1 know all classes, the specialists some, and
    all have held out more than a student does; `process` is a search for one."""
    folder = tmp_path_factory.mktemp("runs")
    tables: dict[str, tuple[str, dict[str, Any]]] = {
        f"t{seed}": ("ce", {"seed": seed, "data": {"holdout": 0.4}, "epochs": 12}) for seed in (0, 1)
    }
    tables |= {name: ("ce", {"data": {"holdout": 0.4}, "epochs": 12}) for name in SPECIALISTS}

    def run(name: str) -> Path:
        if not (folder / name).exists():
            searches = name == "process"
            method, table = ("distpro-search", tables_of("distpro-search", run)) if searches else tables[name]
            dataset = SomeClasses(few_images(), SPECIALISTS[name]) if name in SPECIALISTS else None
            train(folder / name, method, table, dataset=dataset)
        return folder / name

    return run


def tables_of(name: str, runs_of: Callable[[str], Path]) -> dict[str, Any]:
    """What the recipe of a method needs: its teachers, its process, and what makes it short."""
    fewest, _ = METHODS[name].build.teachers
    names = [*SPECIALISTS] if name == "kd-specialists" else [f"t{number}" for number in range(fewest)]
    teachers = {"teachers": {"runs": [str(runs_of(each)) for each in names]}} if names else {}
    process = {"process": {"file": str(runs_of("process"))}} if name == "distpro" else {}
    return merge(teachers | process, OWN.get(name, {}))


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_goes_on_from_any_epoch(
    name: str, runs_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "KEPT_CHECKPOINTS", EPOCHS)
    tables, whole = tables_of(name, runs_of), tmp_path / "whole"
    trainer = train(whole, name, tables)
    digits, settings = trainer.dataset, trainer.recipe.data
    loader = make_loader(digits.read_test(), digits, settings, CPU.device, CPU.dtype, seed=0)
    (metrics,) = metrics_of([trainer.population.models[0]], loader, CPU)
    assert read_run(whole).start.method == name  # a log that its report can be made of
    assert metrics.top1 > 0.25  # chance is 0.10 with a standard error of 0.016
    for epoch in (3, 6):
        part = tmp_path / f"from-{epoch}"
        shutil.copytree(whole, part)
        (part / "student.safetensors").unlink()
        for later in range(epoch + 1, EPOCHS + 1):
            (part / "checkpoints" / f"epoch-{later:05d}.ckpt").unlink()
        train(part, name, tables)
        assert (part / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes(), epoch
        assert without_clocks(part) == without_clocks(whole), epoch
