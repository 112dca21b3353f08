"""Checkpoints are written on a thread: what they hold, and what is done when one cannot be written."""

import gc
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tests.support.runs import few_images, recipe, trainer
from tfkd_fast.errors import UserError
from tfkd_fast.runs.checkpoint import save_checkpoint
from tfkd_fast.runs.checkpoint_writer import CheckpointWriter
from tfkd_fast.runs.folder import RunFolder


def names(folder: Path) -> list[str]:
    return [path.name for path in RunFolder(folder).checkpoint_files()]


def test_a_checkpoint_has_the_bits_of_the_state_when_it_was_saved(tmp_path: Path) -> None:
    stack = torch.randn(3, 5)
    network = torch.nn.BatchNorm2d(3).state_dict()  # whose mapping has a version beside its tensors
    state = {"epoch": 1, "slots": [stack[0], stack[2]], "weights": torch.nn.Parameter(stack.clone()), "net": network}
    save_checkpoint(tmp_path / "expected.ckpt", state)
    begin = threading.Event()
    with closing(CheckpointWriter(RunFolder(tmp_path), begin.wait)) as writer:
        writer.save(1, state)
        stack.zero_()  # as the next step does
        network["running_mean"].fill_(7.0)
        state["epoch"] = 2
        assert names(tmp_path) == []
        begin.set()
    written = tmp_path / "checkpoints" / "epoch-00001.ckpt"
    assert written.read_bytes() == (tmp_path / "expected.ckpt").read_bytes()


def test_one_is_written_after_the_other_and_each_after_the_log(tmp_path: Path) -> None:
    met: list[list[str]] = []
    with closing(CheckpointWriter(RunFolder(tmp_path), lambda: met.append(names(tmp_path)))) as writer:
        for epoch in (1, 2, 3):
            writer.save(epoch, {"epoch": epoch})
        writer.wait()
        assert names(tmp_path) == ["epoch-00002.ckpt", "epoch-00003.ckpt"]
    assert met == [[], ["epoch-00001.ckpt"], ["epoch-00001.ckpt", "epoch-00002.ckpt"]]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts what is open as Linux lists it")
def test_what_is_written_is_not_held(tmp_path: Path) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(found, torch.Tensor) for found in gc.get_objects())

    with closing(CheckpointWriter(RunFolder(tmp_path), lambda: None)) as writer:
        before, files = tensors(), len(list(Path("/proc/self/fd").iterdir()))
        for epoch in (1, 2):
            writer.save(epoch, {"weights": torch.zeros(3)})
            writer.wait()
            assert (tensors(), len(list(Path("/proc/self/fd").iterdir()))) == (before, files)


@pytest.mark.parametrize("where", ["the next", "the end"])
def test_a_failure_is_raised_once(tmp_path: Path, where: str) -> None:
    (tmp_path / "checkpoints").write_text("a file is in the way")
    writer = CheckpointWriter(RunFolder(tmp_path), lambda: None)
    writer.save(1, {"epoch": 1})
    with pytest.raises(UserError, match=r"cannot write .*epoch-00001.ckpt"):
        writer.save(2, {"epoch": 2}) if where == "the next" else writer.close()
    writer.close()
    assert not any(thread.name.startswith("checkpoints") for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"checkpoint_seconds": 3600.0}, ["epoch-00003.ckpt"]),
        ({"checkpoint_seconds": 0.0}, ["epoch-00002.ckpt", "epoch-00003.ckpt"]),
        ({}, ["epoch-00002.ckpt", "epoch-00003.ckpt"]),
    ],
)
def test_checkpoints_by_time(tmp_path: Path, settings: dict[str, float], expected: list[str]) -> None:
    with closing(trainer(recipe("ce", epochs=3, **settings), tmp_path, few_images())) as run:
        run.run()
    assert names(tmp_path) == expected
