"""Runs as processes of this machine: on Linux forked from one that has imported what they need, elsewhere started."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tfkd_fast.errors import UserError
from tfkd_fast.machine import available_cores, threads_per_process
from tfkd_fast.runs.stop import LIFELINE
from tfkd_fast.strict_json import to_json
from tfkd_fast.study.executors.protocol import CollectedProcess, Processes, RunOrder, RunProcess


class LocalExecutor:
    """Processes of this machine, which end with the one that started them, however it ends."""

    def __init__(self, jobs: int | None, *, on_cuda: bool) -> None:
        """So many at a time, which share its cores; without `jobs` one on CUDA, otherwise one for each core.

        Where OMP_NUM_THREADS is set, none has more threads than that.
        """
        self.jobs = jobs or (1 if on_cuda else available_cores())
        self.threads = threads_per_process(self.jobs)
        """Number of threads that each of them computes with."""

    @contextmanager
    def processes(self, folder: Path, locks: Sequence[int]) -> Iterator[Processes]:
        """See `Executor.processes`."""
        with Lifeline() as lifeline:
            if sys.platform != "linux":  # elsewhere there is no fork, or libraries that do not bear it
                yield StartedProcesses(self.threads, locks, lifeline)
                return
            with ForkedProcesses(folder, self.threads, locks, lifeline) as forked:
                yield forked


class Lifeline:
    """A pipe, see `LIFELINE`: a context manager that holds the end whose closing ends the processes."""

    def __enter__(self) -> Self:
        self.end, other = os.pipe()
        self._other = os.fdopen(other, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        os.close(self.end)

    def cut(self) -> None:
        """Ask all processes that inherited `end` to end."""
        self._other.close()

    def environment(self, threads: int) -> dict[str, str]:
        """The environment of a process that computes with so many threads and inherits `end`."""
        return os.environ | {"OMP_NUM_THREADS": str(threads), LIFELINE: str(self.end)}


def start_process(
    order: RunOrder, threads: int, locks: Sequence[int], lifeline: Lifeline, folder: Path | None = None
) -> "subprocess.Popen[bytes]":
    """A process that begins with the interpreter and trains a run, in a working folder or else in ours."""
    with order.log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tfkd_fast", *order.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=lifeline.environment(threads),
            process_group=0,  # a Ctrl-C reaches the study alone, which stops them
            pass_fds=[*locks, lifeline.end],
        )


class StartedProcesses(Processes):
    """Each process begins with the interpreter."""

    def __init__(self, threads: int, locks: Sequence[int], lifeline: Lifeline) -> None:
        self._threads, self._locks, self._lifeline = threads, locks, lifeline

    def start(self, order: RunOrder) -> RunProcess:
        return start_process(order, self._threads, self._locks, self._lifeline)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def end_all(self) -> None:
        self._lifeline.cut()


class ForkedProcesses(Processes):
    """All processes are forked from one, which `cli/warm.py` describes; it ends with the block."""

    def __init__(self, folder: Path, threads: int, locks: Sequence[int], lifeline: Lifeline) -> None:
        self._lifeline = lifeline
        self._channel, other = socket.socketpair()
        self._living: dict[int, ForkedProcess] = {}
        self._started = 0
        self._answers = b""  # the beginning of one that has not come whole
        with other:
            self._warm = subprocess.Popen(
                [sys.executable, "-m", "tfkd_fast.cli.warm", str(other.fileno()), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=lifeline.environment(threads),
                process_group=0,  # a Ctrl-C reaches the study alone, which stops its runs
                pass_fds=[*locks, lifeline.end, other.fileno()],
            )

    def __enter__(self) -> "ForkedProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._warm.wait()

    def start(self, order: RunOrder) -> RunProcess:
        """
        Raises:
            UserError: somebody ended the process that forks.
        """
        self._started += 1
        process = self._living[self._started] = ForkedProcess(self, self._started)
        self.send({"start": self._started, "arguments": order.arguments(), "log": str(order.log)})
        if process.poll() is not None:
            raise UserError("the process that starts the runs has ended: give the same command again")
        return process

    def send(self, message: dict[str, object]) -> None:
        """Send a message to the process that forks, if it lives."""
        try:
            self._channel.sendall(to_json(message).encode() + b"\n")
        except OSError:
            self._lose_all()

    def pause(self, seconds: float) -> None:
        """Wait until a process has ended, at most so long."""
        readable, _, _ = select.select([self._channel], [], [], seconds)
        if not readable:
            return
        received = self._channel.recv(1 << 16)
        if not received:
            self._lose_all()
        *answers, self._answers = (self._answers + received).split(b"\n")
        for answer in map(json.loads, answers):
            self._living.pop(answer["ended"]).code = answer["code"]

    def end_all(self) -> None:
        self._lifeline.cut()

    def _lose_all(self) -> None:
        """Nothing more will be known of processes whose parent was killed; they end with the study's lifeline."""
        for process in self._living.values():
            process.code = -signal.SIGKILL
        self._living.clear()


class ForkedProcess(CollectedProcess):
    """A process that was forked from another one than this."""

    def __init__(self, source: ForkedProcesses, number: int) -> None:
        super().__init__(source)
        self._source, self._number = source, number

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.code is None:
            self._source.send({"signal": int(number), "to": self._number})
