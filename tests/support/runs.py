"""Short runs in this process: their recipes, trainers and logs, and a small data set."""

import json
from pathlib import Path
from typing import Any

import torch

from tfkd_fast.data import Dataset, open_dataset
from tfkd_fast.device import Compute
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import PARTS
from tfkd_fast.runs.recipe import Recipe, make_recipe
from tfkd_fast.training.trainer import Trainer

CPU = Compute(torch.device("cpu"), torch.float32)


def recipe(method: str, **tables: Any) -> Recipe:
    small: dict[str, Any] = {"method": method, "epochs": 2, "device": "cpu", "precision": "fp32"}
    small |= {"model": {"width": 0.125}, "data": {"dataset": "digits", "batch_size": 256}}
    return make_recipe(small, tables)


def trainer(recipe: Recipe, path: Path, dataset: Dataset | None = None) -> Trainer:
    folder = RunFolder(path)
    made = Trainer(recipe, dataset or open_dataset(recipe.data), CPU, folder, [])
    folder.create(recipe.to_toml())
    return made


def log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


CLOCKS = {"time", "seconds", "images_per_second", *(f"{part}_seconds" for part in PARTS)}
PLACES = {"line", "crc32"}  # they change with the clocks, and where a run says that it was resumed


def without_clocks(folder: Path) -> list[dict[str, Any]]:
    left_out = CLOCKS | PLACES
    events = [event for event in log(folder) if event["event"] not in ("resume", "processes")]
    return [{k: v for k, v in event.items() if k not in left_out} for event in events]


def few_images() -> Dataset:
    """Every fourth digit: an epoch of six batches of 64, the last of them smaller."""
    digits = open_dataset(recipe("ce").data)
    images = digits.read_train().subset(torch.arange(0, len(digits.read_train()), 4))
    return Dataset(
        "digits", digits.classes, digits.image_shape, flip=False, read_train=lambda: images, read_test=digits.read_test
    )
