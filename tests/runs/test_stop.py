"""Signals that end a run lose no finished epoch."""

import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import SMALL, children, command
from tests.support.runs import log, recipe, without_clocks
from tfkd_fast import api
from tfkd_fast.errors import UserError
from tfkd_fast.events import EpochEnded, Event
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.lock import refuse_if_busy
from tfkd_fast.runs.log import Listener
from tfkd_fast.runs.stop import LIFELINE, SIGNALS, Stop, Stopped, stopped_by_signals

EPOCHS = 4


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    """Under nohup the tests ignore SIGHUP, and so would what they start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class SignalIn(Listener):
    """Sends this process signals when an epoch is logged, which no checkpoint has by then."""

    def __init__(self, epoch: int, *signals: int) -> None:
        self.epoch, self.signals = epoch, signals

    def event(self, event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == self.epoch:
            for number in self.signals:
                os.kill(os.getpid(), number)


def stopped(folder: Path, every: int, *signals: int) -> Stopped:
    """How a run ended that got signals in its second epoch."""
    before = [signal.getsignal(number) for number in SIGNALS]
    settings = recipe("ce", epochs=EPOCHS, checkpoint_every=every)
    with pytest.raises(Stopped) as end, stopped_by_signals() as stop:
        api.train(settings, folder, listeners=[SignalIn(2, *signals)], stop=stop)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    return end.value


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_run_with_a_checkpoint_of_its_last_finished_epoch(tmp_path: Path, number: int) -> None:
    assert stopped(tmp_path, EPOCHS, number).exit_code == 128 + number
    assert [path.name for path in RunFolder(tmp_path).checkpoint_files()] == ["epoch-00002.ckpt"]
    refuse_if_busy(tmp_path)


class SignalAfterLook(Stop):
    """A stop that a signal reaches the moment after the trainer first looked whether one has."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "requested" and value is None and super().__getattribute__("unsaved"):
            self.requested = signal.SIGTERM  # as `handle` does while an epoch is unsaved
        return value


def test_a_signal_that_comes_when_an_epoch_is_not_to_be_saved_ends_the_run_after_the_next(tmp_path: Path) -> None:
    with stopped_by_signals(), pytest.raises(Stopped):
        api.train(recipe("ce", epochs=EPOCHS, checkpoint_every=EPOCHS), tmp_path, stop=SignalAfterLook())
    assert [path.name for path in RunFolder(tmp_path).checkpoint_files()] == ["epoch-00002.ckpt"]


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    api.train(recipe("ce", epochs=EPOCHS, checkpoint_every=EPOCHS), whole)
    stopped(part, EPOCHS, signal.SIGTERM)
    api.resume(part)
    assert (part / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    assert without_clocks(part)[:-1] == without_clocks(whole)[:-1]  # the last one says how many seconds saving took


def test_a_second_signal_does_not_wait_for_the_end_of_the_epoch(tmp_path: Path) -> None:
    assert stopped(tmp_path, EPOCHS, signal.SIGTERM, signal.SIGUSR1).exit_code == 128 + signal.SIGTERM
    assert not RunFolder(tmp_path).checkpoint_files()


def test_without_unsaved_epochs_a_signal_ends_the_block_at_once() -> None:
    with pytest.raises(Stopped, match="SIGTERM"), stopped_by_signals():
        signal.raise_signal(signal.SIGTERM)


def test_what_was_to_be_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_end_of_a_study_ends_its_runs_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end, lifeline = os.pipe()
    monkeypatch.setenv(LIFELINE, str(end))

    class Close(Listener):
        def event(self, event: Event) -> None:
            if isinstance(event, EpochEnded) and event.epoch == 2:
                os.close(lifeline)
                while stop.requested is None:
                    time.sleep(0.001)

    settings = recipe("ce", epochs=EPOCHS, checkpoint_every=EPOCHS)
    with pytest.raises(Stopped, match="SIGTERM"), stopped_by_signals() as stop:
        api.train(settings, tmp_path, listeners=[Close()], stop=stop)
    os.close(end)
    assert [path.name for path in RunFolder(tmp_path).checkpoint_files()] == ["epoch-00002.ckpt"]


def test_a_lifeline_that_is_no_number_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("abc", "", "-1"):
        monkeypatch.setenv(LIFELINE, value)
        with stopped_by_signals() as stop:
            assert LIFELINE not in os.environ
        assert stop.requested is None


SIGNAL_AT_TORCH = """
import os, signal, sys

class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Signal())
"""


@pytest.mark.parametrize("where", ["--out", "--resume"])
def test_a_signal_before_torch_is_imported_is_one_sentence(tmp_path: Path, where: str) -> None:
    """Which is true of a run that is yet to begin, and of one that is there."""
    (tmp_path / "sitecustomize.py").write_text(SIGNAL_AT_TORCH)  # Python imports it first of all
    out = tmp_path / "run"
    ended = subprocess.run(
        command("train", where, out),
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr == "stopped: give the same command again\n"
    assert ended.returncode == 128 + signal.SIGTERM
    assert not out.exists()


def test_a_signal_to_all_processes_of_a_job_costs_no_epoch(tmp_path: Path) -> None:
    """As clusters and Ctrl-C send it: the workers of a loader stay until the run is done with them."""
    arguments = ["train", "digits", *SMALL, "--method", "ce", "--epochs", "1000", "--loader", "torchvision"]
    arguments += ["--set", "data.workers=2", "--set", "checkpoint_every=1000", "--out", tmp_path]
    with subprocess.Popen(
        command(*arguments), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        metrics = tmp_path / "metrics.jsonl"
        while not metrics.exists() or '"epoch"' not in metrics.read_text():
            assert process.poll() is None
            time.sleep(0.01)
        while not children(process.pid):  # between two epochs there are no workers
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGTERM)
        _, message = process.communicate()
    assert message == f"stopped: tfkd-fast train --resume {tmp_path} goes on from the last checkpoint\n"
    assert process.returncode == 128 + signal.SIGTERM
    assert len(RunFolder(tmp_path).checkpoint_files()) == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left


def test_a_worker_that_is_killed_is_one_sentence(tmp_path: Path) -> None:
    """As by a system that runs out of memory."""

    class KillWorkers(Listener):
        def batch(self, images: int) -> None:
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join()

    settings = recipe("ce", epochs=1, data={"loader": "torchvision", "workers": 1})
    with pytest.raises(UserError, match=f"was ended from outside, .*: go on with --resume {tmp_path}"):
        api.train(settings, tmp_path, listeners=[KillWorkers()])
    assert api.resume(tmp_path)["epochs"] == 1


def test_a_terminal_that_is_closed_costs_no_epoch(tmp_path: Path) -> None:
    folder, message = tmp_path / "run", tmp_path / "message"
    terminal, screen = pty.openpty()
    arguments = ["train", "digits", *SMALL, "--method", "ce", "--epochs", "1000", "--set", "checkpoint_every=1000"]
    with message.open("wb") as errors:
        process = subprocess.Popen(
            ["setsid", "--ctty", *command(*arguments, "--out", folder)], stdin=screen, stdout=screen, stderr=errors
        )
    os.close(screen)
    while not (folder / "metrics.jsonl").exists() or '"epoch"' not in (folder / "metrics.jsonl").read_text():
        assert process.poll() is None, message.read_text()
        time.sleep(0.01)
    os.close(terminal)
    assert process.wait(120) == 128 + signal.SIGHUP
    assert message.read_text() == f"stopped: tfkd-fast train --resume {folder} goes on from the last checkpoint\n"
    (checkpoint,) = RunFolder(folder).checkpoint_files()
    last = max(event["epoch"] for event in log(folder) if event["event"] == "epoch")
    assert checkpoint.name == f"epoch-{last:05d}.ckpt"
