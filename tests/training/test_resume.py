"""Going on from any checkpoint ends with the same student, bit for bit. A full disk or a locked folder loses none."""

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.runs import few_images, log, recipe, trainer, without_clocks
from tests.support.tables import LEARNED
from tfkd_fast import api
from tfkd_fast.data import missing_loaders, open_dataset
from tfkd_fast.device import Compute
from tfkd_fast.events import EpochEnded, Event
from tfkd_fast.report import write_report
from tfkd_fast.runs import folder as run_folder
from tfkd_fast.runs.checkpoint import load_checkpoint, save_checkpoint
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import Listener
from tfkd_fast.runs.precedence import merge
from tfkd_fast.training.trainer import Trainer

EPOCHS = 4
WARMED = {"warmup_epochs": 1}
CHANGES = {"crop": "resized", "auto_augment": "randaugment", "jitter": 0.4, "erasing": 0.5}
MRS: dict[str, Any] = {"selection": {"candidates": 2, "interval": 2}}

# Every method goes on in tests/methods/test_every_method.py, every controller in tests/steering/control.
# Here is what the engine remembers beside them.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "tfkd, ppo": ("tfkd", merge(LEARNED, {"controller": {"single_buffer": 2, **WARMED}})),
    "tfkd, schedule": ("tfkd", {"controller": {"name": "schedule", "true_mass": [0.9, 0.6, 0.9]}}),
    "tfkd, full matrix": ("tfkd", merge(LEARNED, {"target": {"family": "full-matrix"}})),
    "mrs, ppo": ("tfkd-mrs", merge(LEARNED, {"controller": WARMED, **MRS})),
    "mrs, policy": ("tfkd-mrs", {"controller": WARMED, **MRS}),
    "mrs, probe": ("tfkd-mrs", {"selection": {"budget": "probe", "candidates": 2, "interval": 2, "events": [0.4]}}),
    "mrs, averages": (
        "tfkd-mrs",
        {
            "selection": {"candidates": 3, "interval": 2, "average": "greedy", "start": 0.25, "target": "shared"},
            **LEARNED,
        },
    ),
    "mrs, streams": ("tfkd-mrs", {"population": "streams", **MRS}),
    "mrs, stacked": ("tfkd-mrs", {"population": "stacked", **MRS}),
    "halving, learning rates": (  # stopped before a round, between its rungs and within the last one
        "tfkd-mrs",
        {
            "selection": {"budget": "halving", "candidates": 2, "learning_rate_spread": 0.5},
            **merge(LEARNED, {"controller": WARMED}),
        },
    ),
    "mrs, all sources, one order": (
        "tfkd-mrs",
        {
            "target": {"sources": ["memory", "peers", "slow-self"], "source_share": 0.2, "slow_self_decay": 0.9},
            "controller": {"name": "ppo"},
            "selection": {"candidates": 2, "interval": 2},
        },
    ),
    "peers without selection": ("tfkd", {"target": {"sources": ["peers"], "peers": 2}}),
    "memory and slow self, hypergradient": (
        "tfkd",
        {"target": {"sources": ["memory", "slow-self"]}, "controller": {"name": "hypergradient", **WARMED}},
    ),
    "mrs, cooldown": ("tfkd-mrs", {"controller": {"cooldown_epochs": 1, **WARMED}, **MRS}),
    "mrs, adamw, cooldown": (  # accumulated, clipped, and with a moving average
        "tfkd-mrs",
        {
            "optimizer": {
                "name": "adamw",
                "clip_norm": 1.0,
                "decay_norms_and_biases": False,
                "accumulate": 2,
                "ema_decay": 0.9,
            },
            "controller": {"cooldown_epochs": 1, **WARMED},
            **MRS,
        },
    ),
    "ce, random changes": ("ce", {"data": {"loader": "resident", **CHANGES}}),
    "mrs, random changes, torchvision": (
        "tfkd-mrs",
        {"data": {"loader": "torchvision", "workers": 1, **CHANGES}, **MRS},
    ),
    "mrs, dali": ("tfkd-mrs", {"data": {"loader": "dali"}, "population": "streams", **MRS}),
    "ce, bf16": ("ce", {"precision": "bf16"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_any_epoch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "KEPT_CHECKPOINTS", EPOCHS)
    method, tables = RUNS[name]
    if "dali" in name and (reason := missing_loaders()["dali"]):
        pytest.skip(f"the loader dali {reason}")
    small = {"data": {"batch_size": 64} | tables.get("data", {})}
    settings = recipe(method, epochs=EPOCHS, **tables | small)
    whole, images = tmp_path / "whole", few_images()
    best_epoch = trainer(settings, whole, images).run()["best_epoch"]
    ema = (whole / "student-ema.safetensors").exists()
    assert ema == (settings.optimizer.ema_decay is not None)
    for epoch in range(1, EPOCHS):
        part = tmp_path / f"from-{epoch}"
        shutil.copytree(whole, part)
        (part / "student.safetensors").unlink()
        (part / "student-ema.safetensors").unlink(missing_ok=True)
        if best_epoch > epoch:
            (part / "best.safetensors").unlink()
        for later in range(epoch + 1, EPOCHS + 1):
            (part / "checkpoints" / f"epoch-{later:05d}.ckpt").unlink()
        compute = Compute(torch.device("cpu"), torch.float32)
        Trainer(settings, images, compute, RunFolder(part), []).run()
        for name in ("student.safetensors", "best.safetensors", *(["student-ema.safetensors"] if ema else [])):
            assert (part / name).read_bytes() == (whole / name).read_bytes(), epoch
        assert without_clocks(part) == without_clocks(whole), epoch


def test_a_run_goes_on_with_the_loader_that_it_chose(tmp_path: Path) -> None:
    """Even if `auto` would come to another one today."""
    api.train(recipe("ce", epochs=EPOCHS), tmp_path, listeners=[])
    (choice,) = (event for event in log(tmp_path) if event["event"] == "loader")
    assert choice["chosen"] == "resident"
    (tmp_path / "summary.json").unlink()
    newest(tmp_path).unlink()
    state = load_checkpoint(newest(tmp_path))
    assert state["loader"] == "resident"
    save_checkpoint(newest(tmp_path), state | {"loader": "torchvision"})
    assert api.resume(tmp_path, [])["loader"] == "torchvision"
    used = [event["loader"] for event in log(tmp_path) if event["event"] in ("start", "resume")]
    assert used == ["resident", "torchvision"]
    assert api.evaluate(tmp_path)["test_images"] > 0


# What goes wrong on a disk.


@pytest.mark.parametrize("damage", ["gone", "short", "zeros"])
def test_a_log_that_a_power_cut_left_short_costs_its_lines_only(tmp_path: Path, damage: str) -> None:
    settings, images = recipe("ce", epochs=3), few_images()
    folder = RunFolder(tmp_path)
    trainer(settings, tmp_path, images).run()
    whole = folder.student.read_bytes()
    folder.student.unlink()
    newest(tmp_path).unlink()
    content = folder.metrics.read_bytes()
    if damage == "gone":
        folder.metrics.unlink()
    else:
        cut = content.index(b'"epoch"') + 30  # within the line of the first epoch
        folder.metrics.write_bytes(content[:cut] + (b"\0" * (len(content) - cut) if damage == "zeros" else b""))
    Trainer(settings, images, Compute(torch.device("cpu"), torch.float32), folder, []).run()
    assert folder.student.read_bytes() == whole
    assert [event["epoch"] for event in log(tmp_path) if event["event"] == "epoch"] == [3]
    assert [event["log_incomplete"] for event in log(tmp_path) if event["event"] == "resume"] == [True]
    assert "lacks lines from before it was resumed after epoch 2" in write_report(tmp_path).read_text()


TRAIN = [sys.executable, "-m", "tfkd_fast", "train"]
SMALL = ["digits", "--device", "cpu", "--method", "ce", "--epochs", "400", "--set", "model.width=0.125"]


def start(folder: Path, **options: Any) -> subprocess.Popen[str]:
    """A run that has written its first checkpoint."""
    process = subprocess.Popen(
        [*TRAIN, *SMALL, "--out", str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
    while not (folder / "checkpoints" / "epoch-00002.ckpt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


class StopAfter(Listener):
    """A listener that interrupts a run when an epoch's checkpoint is written and the next epoch trained."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def event(self, event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch > self.epoch:
            raise KeyboardInterrupt


def newest(folder: Path) -> Path:
    return RunFolder(folder).checkpoint_files()[-1]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no limits on a running process here")
@pytest.mark.parametrize("what", ["checkpoint", "log"])
def test_a_disk_that_is_full_stops_the_run_with_one_sentence(tmp_path: Path, what: str) -> None:
    """A limit on the size of files stands for the disk: the write fails in the same place, with another reason."""
    folder = tmp_path / "run"
    process = start(folder)
    size = (newest(folder) if what == "checkpoint" else folder / "metrics.jsonl").stat().st_size
    limit = size // 2 if what == "checkpoint" else size + 2000
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    _, message = process.communicate(timeout=120)
    assert process.returncode == 2
    assert message.startswith("error: cannot write ")
    assert "File too large; " in message
    assert len(message.splitlines()) == 1
    assert not list(folder.rglob("*.part"))
    state = RunFolder(folder).newest_state()  # the checksum is right
    assert state is not None
    later = state["state"]["epoch"] + 2
    with pytest.raises(KeyboardInterrupt):
        api.resume(folder, [StopAfter(later)])
    assert newest(folder).name == f"epoch-{later:05d}.ckpt"
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def lock_out_root() -> None:
    """In a new process: permissions hold for root, too (PR_CAPBSET_DROP of CAP_DAC_OVERRIDE)."""
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).prctl(24, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


@pytest.mark.skipif(sys.platform != "linux", reason="takes a capability away, as Linux has them")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        api.train(recipe("ce", epochs=400), folder, listeners=[StopAfter(2)])
    last = newest(folder)
    before = last.read_bytes()
    (folder / "metrics.jsonl").chmod(0o444)
    for path in (folder, folder / "checkpoints"):
        path.chmod(0o555)
    refused = {"capture_output": True, "text": True, "check": False, "preexec_fn": lock_out_root}
    for arguments in (["--resume", str(folder)], [*SMALL, "--out", str(folder / "new")]):
        result = subprocess.run([*TRAIN, *arguments], **refused)
        assert result.returncode == 2, result.stdout + result.stderr
        assert result.stderr.startswith(f"error: cannot write {folder}") or "cannot write to" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert last.read_bytes() == before
    for path in (folder, folder / "checkpoints"):
        path.chmod(0o755)


def test_a_crash_in_the_middle_of_a_write_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """What a killed process leaves: a part of the next file, beside the one before it."""
    settings = recipe("ce", epochs=3)
    run = trainer(settings, tmp_path)
    run.run()
    folder = RunFolder(tmp_path)
    newest(tmp_path).unlink()
    whole = newest(tmp_path).read_bytes()
    (tmp_path / "checkpoints" / "epoch-00003.ckpt.part").write_bytes(whole[: len(whole) // 2])
    state = folder.newest_state()
    assert state is not None
    assert state["state"]["epoch"] == 2
    compute = Compute(torch.device("cpu"), torch.float32)
    Trainer(settings, open_dataset(settings.data), compute, folder, []).run()
    assert not list(tmp_path.rglob("*.part"))
