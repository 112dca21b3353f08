"""No epoch, interval, evaluation or report leaves anything open: files, threads, processes, tensors."""

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.support.command import children
from tests.support.runs import CPU, few_images, recipe
from tfkd_fast import api
from tfkd_fast.data import missing_loaders
from tfkd_fast.events import EpochEnded, Event
from tfkd_fast.report import write_report
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import Listener
from tfkd_fast.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts what is open as Linux lists it")


class Held(NamedTuple):
    """What this process holds."""

    files: int
    threads: int
    children: int
    tensors: int


def held() -> Held:
    gc.collect()
    threads = min(_tasks() for _ in range(10))
    tensors = sum(isinstance(found, torch.Tensor) for found in gc.get_objects())
    return Held(len(list(Path("/proc/self/fd").iterdir())), threads, len(children(os.getpid())), tensors)


def _tasks() -> int:
    """The threads that the system lists now, a moment later than before: one that was joined may take it to go."""
    time.sleep(0.002)
    return len(list(Path("/proc/self/task").iterdir()))


class Watch(Listener):
    """Looks at the end of every epoch."""

    def __init__(self) -> None:
        self.seen: list[Held] = []

    def event(self, event: Event) -> None:
        if isinstance(event, EpochEnded) and event.candidate == 0:
            self.seen.append(held())


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "torchvision": ("ce", {"data": {"loader": "torchvision", "workers": 1}}),
    "dali": ("ce", {"data": {"loader": "dali"}}),
    "mrs, cooldown, streams": (
        "tfkd-mrs",
        {
            "controller": {"name": "ppo", "cooldown_epochs": 1, "warmup_epochs": 1, "group_buffer": 1},
            "selection": {"candidates": 2, "interval": 1},
            "population": "streams",
        },
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_an_epoch_holds_no_more_than_the_one_before_it(name: str, tmp_path: Path) -> None:
    if name == "dali" and (reason := missing_loaders()["dali"]):
        pytest.skip(f"the loader dali {reason}")
    method, tables = RUNS[name]
    watch, small = Watch(), {"data": {"batch_size": 64} | tables.get("data", {})}
    # One checkpoint, at the end: what a thread holds while it writes one is not there a moment later.
    settings, folder = recipe(method, epochs=5, checkpoint_every=5, **tables | small), RunFolder(tmp_path)
    trainer = Trainer(settings, few_images(), CPU, folder, [watch])
    folder.create(settings.to_toml())
    trainer.run()
    settled, *later = watch.seen[2:]  # by then every kind of interval has begun
    assert all(now <= then for epoch in later for now, then in zip(epoch, settled, strict=True)), watch.seen


@pytest.mark.parametrize("command", [api.evaluate, write_report])
def test_a_command_leaves_nothing(command: Callable[[Path], object], tmp_path: Path) -> None:
    api.train(recipe("ce", epochs=1), tmp_path)
    command(tmp_path)
    before = held()
    for _ in range(2):
        command(tmp_path)
        assert held() == before
