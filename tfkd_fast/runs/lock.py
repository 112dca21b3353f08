"""A folder that one process at a time writes into."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfkd_fast.errors import UserError

LOCK = "lock"
"""Name of the file that is locked. It stays in the folder: what counts is whether a living process holds its lock."""

_held: set[int] = set()


@contextmanager
def lock_folder(folder: Path) -> Iterator[list[int]]:
    """Make the folder, and lock it for as long as the block runs or this process lives.

    Yields the file descriptors that hold the lock: a process that inherits them holds it, too. The system takes the
    lock from a process that ends, however it ends. File systems and systems without such locks are written without one.

    Raises:
        UserError: another process is at work there, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    _held.add(lock)
    try:
        _take(lock, folder)
        yield [lock]
    finally:
        _held.discard(lock)
        os.close(lock)


def refuse_if_busy(folder: Path) -> None:
    """Raise UserError if another living process is at work in the folder; writes nothing."""
    with contextlib.suppress(OSError):  # there is no lock yet
        lock = os.open(folder / LOCK, os.O_RDWR)
        try:
            if not any(os.path.sameopenfile(lock, held) for held in _held):
                _take(lock, folder)
        finally:
            os.close(lock)


def _take(lock: int, folder: Path) -> None:
    if sys.platform == "win32":  # Windows has no such locks
        return
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another tfkd-fast is at work in {folder}: wait for it, or end it first") from None
    except OSError:
        pass  # this file system has no such locks


def _let_go() -> None:
    """A forked process, such as a worker of a loader, may outlive us by seconds and must not hold our locks."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
