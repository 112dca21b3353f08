"""Atomic, checksummed files: a checkpoint is whole or it is refused.

Layout: magic, SHA-256 of the rest, then a `torch.save` archive of tensors, numbers, strings and containers, read with
`weights_only=True`, so that a foreign file can run no code.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tfkd_fast.errors import UserError

MAGIC = b"tfkd_fast checkpoint 2\n"
"""The first bytes of a checkpoint, which name the version of what is in it."""
OLD_MAGICS = (b"tfkd_fast checkpoint 1\n",)
"""The first bytes of older checkpoints, which hold the state of runs and methods in another form."""

PART = ".part"
"""What the name of a file ends in while it is written; the file takes its own name when it is whole."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a neighbour file, flush it to disk, then rename: `path` is the old file or the new one, never a part."""
    scratch = path.with_name(path.name + PART)
    try:
        with scratch.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; what was there before is untouched") from None
    finally:
        with contextlib.suppress(OSError):  # it has the name of the file now
            scratch.unlink()


def _sync_folder(folder: Path) -> None:
    """Write the entries of a folder to disk, too: or else a power cut could bring an old file back after newer ones
    were deleted."""
    if hasattr(os, "O_DIRECTORY"):  # not on Windows
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`, atomically."""
    archive = io.BytesIO()
    torch.save(state, archive)
    payload = archive.getbuffer()
    digest = hashlib.sha256(payload).digest()

    def write(file: BinaryIO) -> None:
        file.write(MAGIC)
        file.write(digest)
        file.write(payload)

    write_atomically(path, write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in `path`, on the CPU; a damaged or foreign file is refused."""
    content = memoryview(path.read_bytes())
    head = len(MAGIC) + hashlib.sha256().digest_size
    if bytes(content[: len(MAGIC)]) in OLD_MAGICS:
        raise UserError(
            f"checkpoint {path} was written by an older version of tfkd-fast, which this one cannot go on from: finish "
            "the run with that version, or train it anew with --overwrite; its log can be reported all the same"
        )
    if bytes(content[: len(MAGIC)]) != MAGIC:
        raise UserError(f"{path} is no checkpoint of tfkd-fast")
    if hashlib.sha256(content[head:]).digest() != bytes(content[len(MAGIC) : head]):
        raise UserError(f"checkpoint {path} is truncated or damaged: delete it, and --resume takes the one before it")
    state: dict[str, Any] = torch.load(io.BytesIO(content[head:]), map_location="cpu", weights_only=True)
    return state
