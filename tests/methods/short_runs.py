"""A short run of every method by its name, and the recipe that each needs."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.support.runs import CPU, few_images
from tfkd_fast.data import Dataset
from tfkd_fast.methods import METHODS
from tfkd_fast.methods.base.needs import Needs
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.precedence import merge
from tfkd_fast.runs.recipe import load_recipe
from tfkd_fast.training.trainer import Trainer

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
    "distpro": {"pathways": LINEAR, "process": {"strength": 0.2}},  # at 1 features outweigh the label for longer
    "education": {"grades": {"promotions": [0.125, 0.25]}, "loss": {"self_reference": 0.5}},
    "crd": {"loss": {"negatives": 64}},
    "frskd": {"model": {"name": "resnet8", "width": 0.5}},
    "mixskd": {"model": {"name": "resnet8", "width": 0.5}},
    "ft": {"loss": {"paraphraser_epochs": 2}},
    "dkd-ls": {"loss": {"alpha": 1.0, "beta": 2.0}},
    "mlkd-ls": {"loss": {"kd_weight": 0.2}},
    "mmkd": {"meta": {"buffer": 32, "period": 2}, "loss": {"beta": 1.0}},
}
"""What a short run needs beside its name."""
SPECIALISTS = {"low": range(5), "high": range(5, 10)}


def train(
    out: Path,
    method: str,
    *tables: dict[str, Any],
    dataset: Dataset | None = None,
    watch: Callable[[Trainer], None] = lambda trainer: None,
) -> Trainer:
    """A run in `out`, or what is left of it; `watch` is given the trainer before it trains."""
    overrides: dict[str, Any] = {"method": method}
    for table in (SMALL, *tables):
        overrides = merge(overrides, table)
    recipe, folder = load_recipe(None, overrides), RunFolder(out)
    trainer = Trainer(recipe, dataset or few_images(), CPU, folder, [])
    if not folder.recipe.exists():
        folder.create(recipe.to_toml())
    watch(trainer)
    trainer.run()
    return trainer


def tables_of(name: str, runs_of: Callable[[str], Path]) -> dict[str, Any]:
    """What the recipe of a method needs: its teachers, its process, and what makes it short."""
    fewest, _ = METHODS[name].needs().teachers
    names = [*SPECIALISTS] if name == "kd-specialists" else [f"t{number}" for number in range(fewest)]
    teachers = {"teachers": {"runs": [str(runs_of(each)) for each in names]}} if names else {}
    process = {"process": {"file": str(runs_of("process"))}} if name == "distpro" else {}
    return merge(teachers | process, OWN.get(name, {}))


def different(names: Iterable[str]) -> list[str]:
    """Of methods that ask the engine for the same, the first."""
    found: dict[Needs, str] = {}
    for name in names:
        found.setdefault(METHODS[name].needs(), name)
    return list(found.values())
