"""Runs that other runs need: teachers and a process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.methods.short_runs import SPECIALISTS, tables_of, train
from tests.support.once import Once
from tests.support.runs import few_images
from tfkd_fast.data.datasets.some_classes import SomeClasses
from tfkd_fast.runs.precedence import merge


@pytest.fixture(scope="session")
def runs_of(once: Once) -> Callable[[str], Path]:
    """What other runs need, by name, each trained once: the teachers t0, t1 know all classes, the specialists some, and
    all have held out more than a student does; `process` is a search for one."""
    tables: dict[str, tuple[str, dict[str, Any]]] = {
        f"t{seed}": ("ce", {"seed": seed, "data": {"holdout": 0.4}, "epochs": 12}) for seed in (0, 1)
    }
    tables |= {name: ("ce", {"data": {"holdout": 0.4}, "epochs": 12}) for name in SPECIALISTS}

    def run(name: str) -> Path:
        if name == "process":
            method, table = "distpro-search", merge(tables_of("distpro-search", run), {"epochs": 3})
        else:
            method, table = tables[name]
        dataset = SomeClasses(few_images(), SPECIALISTS[name]) if name in SPECIALISTS else None
        return once(name, lambda folder: train(folder / name, method, table, dataset=dataset)) / name

    return run
