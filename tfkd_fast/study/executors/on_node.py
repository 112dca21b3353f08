"""A run on a machine of a cluster: a process beside the task that was sent there, which ends with the task."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tfkd_fast.errors import UserError
from tfkd_fast.runs.lock import refuse_if_busy
from tfkd_fast.study.executors.local import Lifeline, start_process
from tfkd_fast.study.executors.protocol import POLL, RunOrder

LAST_SAVE = 300.0
"""Seconds in which the process of an earlier task of the same run is waited for, which may still be saving."""


@dataclass(frozen=True)
class Task:
    """What is sent to a machine of a cluster."""

    order: RunOrder
    """The run, with absolute paths."""
    working_folder: Path
    """The working folder of the study, which paths in its recipes are relative to."""
    threads: int
    """Number of threads that the run computes with."""


def make_task(order: RunOrder, threads: int) -> Task:
    """The task that trains a run of a study in our working folder."""
    recipe, folder, log = order.recipe.absolute(), order.folder.absolute(), order.log.absolute()
    return Task(replace(order, recipe=recipe, folder=folder, log=log), Path.cwd(), threads)


@contextmanager
def process_of(task: Task) -> Iterator["subprocess.Popen[bytes]"]:
    """The process of a task. Where the block ends before it, it is asked to end, and waited for; where this process is
    killed, it ends, too, when it has saved.

    Raises:
        UserError: this machine does not see the folders of the study; or another process trains the same run.
    """
    for path in (task.working_folder, task.order.log):
        if not path.exists():
            raise UserError(
                f"{socket.gethostname()} does not see {path}: put the study and its data on storage that all machines "
                "of the cluster share"
            )
    _wait_until_free(task.order.folder)
    with Lifeline() as lifeline:
        process = start_process(task.order, task.threads, (), lifeline, task.working_folder)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()


def train(task: Task) -> int:
    """Train the run of a task; returns the exit code of its process, -SIGNAL if a signal ended it."""
    with process_of(task) as process:
        while (code := process.poll()) is None:
            time.sleep(POLL)  # not in a system call, which some ways to cancel a task would not interrupt
        return code


def _wait_until_free(folder: Path) -> None:
    deadline = time.monotonic() + LAST_SAVE
    while time.monotonic() < deadline:
        with contextlib.suppress(UserError):
            refuse_if_busy(folder)
            return
        time.sleep(POLL)
    refuse_if_busy(folder)
