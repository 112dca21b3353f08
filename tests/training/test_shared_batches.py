"""Processes that share every batch train the student that one process trains: to the last digits of float64."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.ranks import run_ranks
from tests.support.runs import without_clocks
from tests.training.parts import assembled, train, train_parts
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.precedence import merge
from tfkd_fast.training.gradient_sum import GradientSum
from tfkd_fast.training.ranks import ALONE

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name != "posix", reason="no gloo over forked processes here"
)

# 160 images to fit: batches of 53 end with one of a single image, so that some processes have none of it.
SMALL = {"epochs": 2, "data": {"batch_size": 53, "per_class": 20, "loader": "resident"}}
BANDIT = {"controller": {"name": "ucb", "warmup_epochs": 1, "interval": 1}}
MEMORY = {"target": {"family": "scalar", "sources": ["memory", "slow-self"]}, **BANDIT}
CASES: dict[str, dict[str, Any]] = {
    "labels": {"method": "ce", "data": {"batch_size": 51}},
    "smoothed labels": {"method": "label-smoothing", "optimizer": {"accumulate": 3, "ema_decay": 0.9}},
    "memory": {"method": "tfkd", **MEMORY},
    "peers": {"method": "kdcl"},
    "selection": {
        "method": "tfkd-mrs",
        "target": {"sources": ["memory"]},
        "selection": {"candidates": 2, "interval": 1},
        "optimizer": {"clip_norm": 1.0},
        **BANDIT,
    },
    "rows": {"method": "ps-kd"},
    "sums": {"method": "ols"},
    "companions": {"method": "cs-kd"},
}
FLOAT32 = 1e-6
"""What is float32 or float16: sums of probabilities, the losses of the log."""
EXACT = 1e-12
"""What is float64. AdamW would make steps of the gradient of a bias before a batch norm, which is 0 but for its last
digits."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Tensor]]]:
    """Each case by one process: its folder, and what it holds at the end."""
    done: dict[str, tuple[Path, dict[str, Tensor]]] = {}

    def run(name: str) -> tuple[Path, dict[str, Tensor]]:
        if name not in done:
            out = tmp_path_factory.mktemp("whole") / name
            done[name] = out, train(out, merge(SMALL, CASES[name]), ALONE)
        return done[name]

    return run


def assert_same(folder: Path, name: str, size: int, expected: tuple[Path, dict[str, Tensor]]) -> None:
    """All ranks hold what one process does, and the log says the same."""
    out, tensors = expected
    for rank in range(size):
        assert_same_held(torch.load(folder / f"{name}-{rank}.pt", weights_only=True), tensors, name)
    lines, wanted = without_clocks(folder / name), without_clocks(out)
    assert [line["event"] for line in lines] == [line["event"] for line in wanted]
    for line, other in zip(lines, wanted, strict=True):
        if line["event"] == "epoch":
            assert flat(line) == pytest.approx(flat(other), rel=1e-5, abs=1e-5)


def flat(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in {**line, **(line["holdout"] or {})}.items() if isinstance(value, float)}


def assert_same_held(found: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        close = EXACT if tensor.dtype == torch.float64 and name != "sums" else FLOAT32
        torch.testing.assert_close(found[key], tensor, rtol=close, atol=close, msg=f"{name}: {key}")


def interrupted(run: Path, out: Path) -> None:
    """A copy of a run as it was before its last epoch."""
    shutil.copytree(run, out)
    RunFolder(out).checkpoint_files()[-1].unlink()


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (2, ("labels", "memory", "companions", "peers")),
        (3, ("smoothed labels", "selection", "rows", "sums", "memory")),
    ],
)
def test_parts_of_batches_train_the_student_of_whole_ones(
    tmp_path: Path, whole: Callable[[str], tuple[Path, dict[str, Tensor]]], size: int, names: tuple[str, ...]
) -> None:
    """Also where one process trained the first epochs, or trains the last one."""
    cases = {name: merge(SMALL, CASES[name]) for name in names}
    if size == 3:
        interrupted(whole("memory")[0], tmp_path / "memory")
    assert run_ranks(size, tmp_path, partial(train_parts, tmp_path, cases)) == [(0, "")] * size
    for name in names:
        assert_same(tmp_path, name, size, whole(name))
    if size == 2:
        interrupted(tmp_path / "memory", tmp_path / "alone" / "memory")
        assert_same_held(train(tmp_path / "alone" / "memory", cases["memory"], ALONE), whole("memory")[1], "memory")


def test_each_part_may_have_a_batch_norm_of_its_own(tmp_path: Path) -> None:
    """The running statistics are those of rank 0."""
    tables = merge(SMALL, {"method": "ce", "epochs": 1, "sync_batch_norm": False, "optimizer": {"momentum": 0.0}})
    assert run_ranks(2, tmp_path, partial(train_parts, tmp_path, {"local": tables})) == [(0, "")] * 2
    trainer = assembled(tmp_path / "none", tables, ALONE)
    student, settings = trainer.population.models[0].train(), trainer.recipe.optimizer
    optimizer = torch.optim.SGD(student.parameters(), weight_decay=settings.weight_decay)
    rates = torch.tensor(trainer.recipe.learning_rates(0, len(trainer.parts.loader))).tolist()  # float32
    for batch, rate in zip(trainer.parts.loader.epoch(0), rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        for rank in (1, 0):
            before = {name: buffer.clone() for name, buffer in student.named_buffers()}
            labels = batch.labels[rank::2]
            if len(labels):
                loss = F.cross_entropy(student(batch.images[rank::2]), labels, reduction="sum") / len(batch.labels)
                loss.backward()
            if rank == 1:
                student.load_state_dict(before, strict=False)
        optimizer.step()
    found = torch.load(tmp_path / "local-1.pt", weights_only=True)
    for name, tensor in student.state_dict().items():
        kind = "weights" if f"weights.{name}" in found else "buffers"
        torch.testing.assert_close(found[f"{kind}.{name}"], tensor, rtol=EXACT, atol=EXACT)


def test_the_gradient_of_an_update_has_the_layers_that_one_of_its_batches_used() -> None:
    """Against the gradients that torch adds up itself, of layers that are skipped as stochastic depth skips them."""
    layers = [torch.nn.Linear(3, 3, bias=False).double() for _ in range(3)]
    leaves = [layer.weight for layer in layers]
    total = GradientSum.zeros(leaves)
    for update in ([(0, 2), (1, 2)], [(1,)], [(2,), (0, 2)]):
        for leaf in leaves:
            leaf.grad = None
        for used in update:
            loss = torch.stack([layers[number](torch.rand(5, 3).double()) for number in used]).square().mean() / 2
            total.add(torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True), 0.5)
            (0.5 * loss).backward()
        for found, leaf in zip(total.over(ALONE), leaves, strict=True):
            assert (found is None) == (leaf.grad is None)
            if found is not None and leaf.grad is not None:
                assert torch.allclose(found, leaf.grad, rtol=EXACT, atol=0)
        total.restart()
    assert [found is None for found in total.over(ALONE)] == [False, True, False]  # others have all images of the next
