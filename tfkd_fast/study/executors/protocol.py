"""What a study asks of whatever trains its runs: to start one, to say how it ended, and to end it."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tfkd_fast.errors import UserError
from tfkd_fast.files import write_bytes
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.recipe import Recipe

POLL = 0.1
"""Seconds between two looks at the processes."""
PATIENCE = 10.0
"""Seconds that a process may take to end after it was asked to end at once."""


@dataclass(frozen=True)
class RunOrder:
    """A run that is to be trained, or gone on with."""

    recipe: Path
    """The recipe file that it begins with."""
    folder: Path
    """The run folder, which may hold a part of it by now."""
    log: Path
    """The file to which what it prints is appended."""
    data_root: str | None = None
    """Where its images are, if they were elsewhere when it began."""

    def arguments(self) -> list[str]:
        """The arguments of `tfkd-fast` that begin the run, or go on with it where its folder holds it by now."""
        if not RunFolder(self.folder).recipe.exists():
            return ["train", str(self.recipe), "--out", str(self.folder)]
        return ["train", "--resume", str(self.folder), *(["--data-root", self.data_root] if self.data_root else [])]

    def prepare(self, recipe: Recipe) -> None:
        """Write the recipe file, unless the run has begun, and make the log.

        Raises:
            UserError: one of them cannot be written.
        """
        if not RunFolder(self.folder).recipe.exists():
            write_bytes(self.recipe, recipe.to_toml().encode())
        try:
            self.log.touch()
        except OSError as error:
            raise UserError(f"cannot write {self.log}: {error.strerror}") from None


class RunProcess(Protocol):
    """A process that trains a run, here or elsewhere, as far as a study needs it; `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """The exit code, -SIGNAL if a signal ended it; None while it lives or waits for its turn."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended after so many seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("tfkd-fast train", timeout or 0.0)
            time.sleep(POLL)
        return code

    def terminate(self) -> None:
        """Ask it to end, as SIGTERM does."""

    def kill(self) -> None:
        """End it at once, whether it wants to or not."""


class CollectedProcess(RunProcess):
    """A process whose exit code is set by what started it, in `Processes.pause`."""

    def __init__(self, source: "Processes") -> None:
        self._collect = source.pause
        self.code: int | None = None
        """The exit code, once it is known."""

    def poll(self) -> int | None:
        if self.code is None:
            self._collect(0.0)
        return self.code


class Processes(Protocol):
    """Starts processes that train runs."""

    def start(self, order: RunOrder) -> RunProcess:
        """A process that trains a run.

        Raises:
            UserError: it cannot be started.
        """

    def pause(self, seconds: float) -> None:
        """Wait, at most until a process has ended."""

    def end_all(self) -> None:
        """Ask all of them to end as soon as what they have trained is saved."""


class Executor(Protocol):
    """A place where runs train."""

    jobs: int
    """Number of runs that may be started before one has ended."""

    def processes(self, folder: Path, locks: Sequence[int]) -> AbstractContextManager[Processes]:
        """What starts the runs of the study in a folder.

        Args:
            folder: the folder of the study.
            locks: open files that lock it; processes of this machine inherit them, so that it is taken as long as one
                of them lives.

        Raises:
            UserError: runs cannot be started there.
        """


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
