"""A folder that one process at a time writes into."""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfkd_fast.errors import UserError
from tfkd_fast.files import lock_file

LOCK = "lock"
"""Name of the file that is locked. It stays in the folder: what counts is whether a living process holds its lock."""

PATIENCE = 0.5
"""Seconds in which a lock is tried again: another process may only be looking whether the folder is busy, or ending."""

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
        deadline = time.monotonic() + PATIENCE
        while not lock_file(lock):
            if time.monotonic() > deadline:
                raise _busy(folder)
            time.sleep(PATIENCE / 20)
        yield [lock]
    finally:
        _held.discard(lock)
        os.close(lock)


def refuse_if_busy(folder: Path) -> None:
    """Raise UserError if another living process is at work in the folder; writes nothing."""
    with contextlib.suppress(OSError):  # there is no lock yet
        lock = os.open(folder / LOCK, os.O_RDWR)
        try:
            ours = any(os.path.sameopenfile(lock, held) for held in _held)
            if not ours and not lock_file(lock, shared=True):
                raise _busy(folder)
        finally:
            os.close(lock)


def _busy(folder: Path) -> UserError:
    return UserError(f"another tfkd-fast is at work in {folder}: wait for it, or end it first")


def _let_go() -> None:
    """A forked process, such as a worker of a loader, may outlive us by seconds and must not hold our locks."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
