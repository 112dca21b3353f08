"""The steps of every method as CUDA wants them: nothing waits for the device, and a captured or compiled step is the
step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine import test_epoch
from tests.engine.test_epoch import HostWaits
from tests.engine.test_resume import few_images
from tests.methods import test_every_method
from tests.methods.test_every_method import tables_of
from tfkd_fast import ops
from tfkd_fast.engine import Recipe, RunFolder, capture, load_recipe
from tfkd_fast.engine.device import Compute
from tfkd_fast.engine.epoch import Lane
from tfkd_fast.engine.loop import Trainer
from tfkd_fast.engine.recipe import merge
from tfkd_fast.methods import METHODS

runs_of = test_every_method.runs_of
exact_products = test_epoch.exact_products
Runs = Callable[[str], Path]

EPOCHS = 4  # of nine steps and one of a smaller batch, which is captured in the fourth
SMALL: dict[str, Any] = {
    "epochs": EPOCHS,
    "data": {"batch_size": 30, "holdout": 0.2, "loader": "resident"},
    "model": {"width": 0.125},
    "optimizer": {"learning_rate": 1e-3},  # carries on little of what is rounded otherwise
}
SHORT = {"education": {"grades": {"promotions": [0.25, 0.5]}}, "professor": {"professor": {"epochs": 1}}}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "kd-label-mix": ("kd", {"teachers": {"adjust": "label-mix"}}),
    "kd-swap": ("kd", {"teachers": {"adjust": "swap"}}),
    "kd-mixup": ("kd", {"data": {"mix": "mixup"}}),
    "kd-cached": ("kd", {"teachers": {"cache": "cache", "views": 2}}),
    "uskd-cutmix": ("uskd", {"data": {"mix": "cutmix"}}),
    "distpro-cached": ("distpro", {"teachers": {"cache": "cache", "views": 2}}),
    "zipf-logits": ("zipf", {"loss": {"rank": "logits"}}),
    "tf-kd-reg-reference": ("tf-kd-reg", {"loss": {"convention": "reference"}}),
    "professor-staged": ("professor", {"professor": {"strategy": "staged"}}),
    "professor-selective": ("professor", {"professor": {"strategy": "selective"}}),
    "professor-told": ("professor", {"professor": {"strategy": "replace", "variant": "label-conditioned"}}),
    "education-resnet": ("education", {"model": {"name": "resnet20", "width": 0.5}}),
}
"""Other ways through a method, and around it."""
KINDS = {name: (name, {}) for name in METHODS} | VARIANTS
CAPTURED = [kind for kind, (name, _) in KINDS.items() if not METHODS[name].build.looks_ahead]


def recipe_of(kind: str, runs_of: Runs, cache: Path) -> Recipe:
    """Of a short run; what it needs is trained now."""
    name, own = KINDS[kind]
    overrides: dict[str, Any] = {"method": name}
    for table in (SMALL, tables_of(name, runs_of), SHORT.get(name, {}), own):
        overrides = merge(overrides, table)
    if "cache" in overrides.get("teachers", {}):
        overrides["teachers"]["cache"] = str(cache)
    return load_recipe(None, overrides)


def train(recipe: Recipe, out: Path, compute: Compute) -> Trainer:
    folder = RunFolder(out)
    folder.create(recipe.to_toml())
    trainer = Trainer(recipe, few_images(), compute, folder, [])
    trainer.run()
    return trainer


@pytest.mark.parametrize("kind", CAPTURED)
def test_no_step_waits_for_the_device(
    kind: str, runs_of: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU as a stand-in, see `test_epoch`; in bf16, as runs on CUDA. Of every kind of step, one is watched."""
    recipe = recipe_of(kind, runs_of, tmp_path / "cache")
    seen: dict[tuple[Lane, int], list[str]] = {}
    take_step = Lane._step

    def watched(lane: Lane, size: int) -> None:
        if (lane, size) in seen:
            return take_step(lane, size)
        with HostWaits() as waits:
            take_step(lane, size)
        seen[lane, size] = waits.seen

    monkeypatch.setattr(Lane, "_step", watched)
    monkeypatch.setattr("tfkd_fast.engine.step.sgd_step", lambda *arguments: None)  # reads the rate on the CPU alone
    with ops.using_backend("reference"):
        train(recipe, tmp_path / "run", Compute(torch.device("cpu"), torch.bfloat16))
    assert len(seen) > 1
    assert [waits for waits in seen.values() if waits] == []


@pytest.mark.gpu
@pytest.mark.parametrize("kind", CAPTURED)
def test_a_captured_step_is_the_step(
    kind: str, runs_of: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(kind, runs_of, tmp_path / "cache")
    cuda, graphs = Compute(torch.device("cuda"), torch.float32), []
    take = capture._captured
    monkeypatch.setattr(capture, "_captured", lambda *of: graphs.append(take(*of)) or graphs[-1])
    captured = train(recipe, tmp_path / "captured", cuda).population
    assert len(graphs) > 1
    count = len(graphs)
    monkeypatch.setattr(capture, "UNCAPTURED", 10**6)
    uncaptured = train(recipe, tmp_path / "uncaptured", cuda).population
    assert len(graphs) == count
    for part in ("weights", "buffers", "momenta"):
        for name, value in uncaptured.candidate(0)[part].items():
            torch.testing.assert_close(captured.candidate(0)[part][name], value, rtol=2e-3, atol=2e-4)
