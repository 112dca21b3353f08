"""Runs in float64 by processes that share each batch, or by one that has all of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.runs import recipe
from tfkd_fast.data import open_dataset
from tfkd_fast.device import Compute
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.training.ranks import Ranks, join_ranks
from tfkd_fast.training.trainer import Trainer


class Exact(Compute):
    """Trains in float64."""

    def place(self, model: nn.Module) -> nn.Module:
        return super().place(model).double()


def assembled(out: Path, tables: dict[str, Any], ranks: Ranks) -> Trainer:
    """A run, or what is left of it."""
    wanted = recipe(**tables)
    exact = Exact(torch.device("cpu"), torch.float64)
    return Trainer(wanted, open_dataset(wanted.data), exact, RunFolder(out), ranks=ranks)


def train(out: Path, tables: dict[str, Any], ranks: Ranks) -> dict[str, Tensor]:
    """Train a run, or what is left of it; returns what the student and the method hold at its end."""
    trainer, folder = assembled(out, tables, ranks), RunFolder(out)
    if ranks.first and not folder.recipe.exists():
        folder.create(trainer.recipe.to_toml())
    method = trainer.parts.method
    trainer.run()
    trainer.close()
    return {**dict(trainer.population.named_tensors(0)), **method.candidate_tensors()}


def train_parts(folder: Path, cases: Mapping[str, dict[str, Any]]) -> None:
    """Train several runs by this rank, and keep in files what it holds at their ends."""
    with join_ranks() as ranks:
        for name, tables in cases.items():
            torch.save(train(folder / name, tables, ranks), folder / f"{name}-{ranks.rank}.pt")
