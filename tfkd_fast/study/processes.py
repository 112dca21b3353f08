"""The processes of a study's runs: on Linux forked from one that has imported what they need, elsewhere started."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from tfkd_fast.device import available_cores
from tfkd_fast.errors import UserError
from tfkd_fast.runs.stop import LIFELINE
from tfkd_fast.strict_json import to_json

POLL = 0.1
"""Seconds between two looks at the processes."""
PATIENCE = 10.0
"""Seconds that a process may take to end after it was asked to end at once."""


class RunProcess(Protocol):
    """A process that trains a run, as far as a study needs it; as `subprocess.Popen` has it."""

    def poll(self) -> int | None:
        """The exit code, -SIGNAL if a signal ended it; None while it lives."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises `subprocess.TimeoutExpired` after so many seconds."""

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM."""

    def kill(self) -> None:
        """End it at once, whether it wants to or not."""


class Processes(Protocol):
    """Starts processes that train runs."""

    def start(self, arguments: Sequence[str], log: Path) -> RunProcess:
        """A process of `tfkd-fast` with these arguments that appends what it prints to a log."""

    def pause(self, seconds: float) -> None:
        """Wait, at most until a process has ended."""


@contextmanager
def processes(folder: Path, threads: int, inherited: Sequence[int]) -> Iterator[Processes]:
    """What starts the runs of the study in a folder.

    Args:
        folder: the folder of the study.
        threads: the threads that each of them computes with.
        inherited: open files that they inherit, the last of them the end of the lifeline, see `LIFELINE`.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), LIFELINE: str(inherited[-1])}
    if sys.platform != "linux":  # elsewhere there is no fork, or libraries that do not bear it
        yield StartedProcesses(environment, inherited)
        return
    with ForkedProcesses(folder, environment, inherited) as forked:
        yield forked


def share_cores(jobs: int | None, *, on_cuda: bool) -> tuple[int, int]:
    """Processes at a time, and threads of each: `jobs`, or without it one on CUDA and one a core otherwise."""
    cores = available_cores()
    jobs = jobs or (1 if on_cuda else cores)
    return jobs, max(1, cores // jobs)


@contextmanager
def lifeline_pipe() -> Iterator[tuple[int, BinaryIO]]:
    """The end of a pipe that is read, and the other one; see `LIFELINE`."""
    end, other = os.pipe()
    try:
        with os.fdopen(other, "wb") as lifeline:
            yield end, lifeline
    finally:
        os.close(end)


def wait_for_all(running: Collection[RunProcess]) -> None:
    """Wait until all processes have ended, which were asked to; on a second signal end them at once."""
    try:
        for process in running:
            process.wait()
    except BaseException:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
        raise


def end_reason(log: Path, code: int) -> str:
    """The reason why a process failed, which is the last line of its output in `log`, by its exit code."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name} (see {log})"
    with contextlib.suppress(OSError):  # somebody deleted it
        if lines := log.read_text(errors="replace").strip().splitlines():
            return f"{lines[-1].removeprefix('error: ')} (see {log})"
    return f"it said nothing (see {log})"


class StartedProcesses(Processes):
    """Each process begins with the interpreter."""

    def __init__(self, environment: dict[str, str], inherited: Sequence[int]) -> None:
        self._environment, self._inherited = environment, inherited

    def start(self, arguments: Sequence[str], log: Path) -> RunProcess:
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tfkd_fast", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C reaches the study alone, which stops them
                pass_fds=self._inherited,
            )

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


class ForkedProcesses(Processes):
    """All processes are forked from one, which `cli/warm.py` describes; it ends with the block."""

    def __init__(self, folder: Path, environment: dict[str, str], inherited: Sequence[int]) -> None:
        self._channel, other = socket.socketpair()
        self._living: dict[int, ForkedProcess] = {}
        self._started = 0
        self._answers = b""  # the beginning of one that has not come whole
        with other:
            self._warm = subprocess.Popen(
                [sys.executable, "-m", "tfkd_fast.cli.warm", str(other.fileno()), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # a Ctrl-C reaches the study alone, which stops its runs
                pass_fds=[*inherited, other.fileno()],
            )

    def __enter__(self) -> "ForkedProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._warm.wait()

    def start(self, arguments: Sequence[str], log: Path) -> RunProcess:
        """
        Raises:
            UserError: somebody ended the process that forks.
        """
        self._started += 1
        process = self._living[self._started] = ForkedProcess(self, self._started)
        self.send({"start": self._started, "arguments": list(arguments), "log": str(log)})
        if process.poll() is not None:
            raise UserError("the process that starts the runs has ended: give the same command again")
        return process

    def send(self, message: dict[str, object]) -> None:
        """Send a message to the process that forks, if it lives."""
        try:
            self._channel.sendall(to_json(message).encode() + b"\n")
        except OSError:
            self._lose_all()

    def pause(self, seconds: float | None) -> None:
        """Wait until a process has ended, at most so long; None is any time."""
        readable, _, _ = select.select([self._channel], [], [], seconds)
        if not readable:
            return
        received = self._channel.recv(1 << 16)
        if not received:
            self._lose_all()
        *answers, self._answers = (self._answers + received).split(b"\n")
        for answer in map(json.loads, answers):
            self._living.pop(answer["ended"]).code = answer["code"]

    def _lose_all(self) -> None:
        """Nothing more will be known of processes whose parent was killed; they end with the study's lifeline."""
        for process in self._living.values():
            process.code = -signal.SIGKILL
        self._living.clear()


class ForkedProcess(RunProcess):
    """A process that was forked from another one than this."""

    def __init__(self, source: ForkedProcesses, number: int) -> None:
        self._source, self._number = source, number
        self.code: int | None = None
        """The exit code, once it is known."""

    def poll(self) -> int | None:
        if self.code is None:
            self._source.pause(0.0)
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.code is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired("tfkd-fast train", timeout or 0.0)
            self._source.pause(left)
        return self.code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.code is None:
            self._source.send({"signal": int(number), "to": self._number})
