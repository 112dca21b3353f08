"""The steps of every method as CUDA wants them: nothing waits for the device, and a captured or compiled step is the
step."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.methods.short_runs import tables_of
from tests.support.host_waits import watch_steps
from tests.support.runs import few_images, log
from tfkd_fast import ops
from tfkd_fast.device import Compute
from tfkd_fast.methods import METHODS
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.precedence import merge
from tfkd_fast.runs.recipe import Recipe, load_recipe
from tfkd_fast.training import capture
from tfkd_fast.training.trainer import Trainer

Runs = Callable[[str], Path]

pytestmark = pytest.mark.usefixtures("exact_products")

EPOCHS = 4  # of nine steps and one of a smaller batch, which is captured in the fourth
SMALL: dict[str, Any] = {
    "epochs": EPOCHS,
    "data": {"batch_size": 30, "holdout": 0.2, "loader": "resident"},
    "model": {"width": 0.125},
    "optimizer": {"learning_rate": 1e-3},  # carries on little of what is rounded otherwise
}
SHORT = {"education": {"grades": {"promotions": [0.25, 0.5]}}, "professor": {"professor": {"epochs": 1}}}
FIVE_GRADES = {
    "epochs": 10,
    "grades": {"groups": [[str(i), str(i + 1)] for i in range(0, 10, 2)], "promotions": [0.2, 0.4, 0.6, 0.8]},
    "loss": {"self_reference_epochs": 1},
}
"""Nine networks: from the second grade on, each trains an epoch beside the head of the grade before and one without."""
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
    "education-five-grades": ("education", FIVE_GRADES),
}
"""Other ways through a method, and around it."""
KINDS = {name: (name, {}) for name in METHODS} | VARIANTS
CAPTURED = [kind for kind, (name, _) in KINDS.items() if not METHODS[name].needs().look_ahead]


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
    """On the CPU as a stand-in, see `test_epoch`; in bf16, as runs on CUDA."""
    recipe = recipe_of(kind, runs_of, tmp_path / "cache")
    waits = watch_steps(monkeypatch)
    with ops.using_backend("reference"):
        train(recipe, tmp_path / "run", Compute(torch.device("cpu"), torch.bfloat16))
    assert len(waits) > 1  # a smaller last batch is a kind of its own
    assert not any(waits.values())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", CAPTURED)
def test_a_captured_step_is_the_step(kind: str, runs_of: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(kind, runs_of, tmp_path / "cache")
    cuda, graphs = Compute(torch.device("cuda"), torch.float32), []
    take = capture.capture_graph
    monkeypatch.setattr(capture, "capture_graph", lambda *of: graphs.append(take(*of)) or graphs[-1])
    captured = train(recipe, tmp_path / "captured", cuda).population
    assert len(graphs) > 1
    count = len(graphs)
    monkeypatch.setattr(capture, "WARMUP_STEPS", 10**6)
    uncaptured = train(recipe, tmp_path / "uncaptured", cuda).population
    assert len(graphs) == count
    for part in ("weights", "buffers", "momenta"):
        for name, value in uncaptured.candidate(0)[part].items():
            torch.testing.assert_close(captured.candidate(0)[part][name], value, rtol=2e-3, atol=2e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CAPTURED])
def test_what_looks_ahead_runs_on_cuda(kind: str, runs_of: Runs, tmp_path: Path) -> None:
    recipe = recipe_of(kind, runs_of, tmp_path / "cache")
    for dtype in (torch.float32, torch.bfloat16):
        train(recipe, tmp_path / str(dtype), Compute(torch.device("cuda"), dtype))  # a loss that is not finite raises


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        ("education-five-grades", "cpu"),
        *(
            pytest.param(kind, "cuda", marks=pytest.mark.gpu)
            for kind in ("cs-kd", "dlb", "uskd", "distpro", "professor", "mmkd", "education-five-grades")
        ),
    ],
)
def test_compiled_it_learns_the_same(
    kind: str, device: str, runs_of: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every network is one graph, or it is refused; on the CPU that is all that is looked at."""
    recipe = recipe_of(kind, runs_of, tmp_path / "cache")
    losses = []
    if device == "cpu":
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        train(recipe, out, Compute(torch.device(device), torch.bfloat16, compiled))
        losses.append([event["train_loss"] for event in log(out) if event["event"] == "epoch"])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)  # bf16 has 8 bits
