"""Atomic, checksummed files: a checkpoint is whole or it is refused.

Layout: magic, SHA-256 of the rest, then a `torch.save` archive of tensors, numbers, strings and containers, read with
`weights_only=True`, so that a foreign file can run no code.
"""

import hashlib
import io
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tfkd_fast.errors import UserError
from tfkd_fast.files import read_bytes, reading, write_atomically

MAGIC = b"tfkd_fast checkpoint 2\n"
"""The first bytes of a checkpoint, which name the version of what is in it."""
OLD_MAGICS = (b"tfkd_fast checkpoint 1\n",)
"""The first bytes of older checkpoints, which hold the state of runs and methods in another form."""

REMEDY = "delete it, and --resume takes the one before it"


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
    """The state in `path`, on the CPU.

    Raises:
        UserError: the file cannot be read, is damaged, or is no checkpoint of this version.
    """
    content = memoryview(read_bytes(path, "the checkpoint", REMEDY))
    head = len(MAGIC) + hashlib.sha256().digest_size
    if bytes(content[: len(MAGIC)]) in OLD_MAGICS:
        raise UserError(
            f"checkpoint {path} was written by an older version of tfkd-fast, which this one cannot go on from: finish "
            "the run with that version, or train it anew with --overwrite; its log can be reported all the same"
        )
    if bytes(content[: len(MAGIC)]) != MAGIC:
        raise UserError(f"{path} is no checkpoint of tfkd-fast: {REMEDY}")
    if hashlib.sha256(content[head:]).digest() != bytes(content[len(MAGIC) : head]):
        raise UserError(f"checkpoint {path} is truncated or damaged: {REMEDY}")
    with reading(path, "the checkpoint", REMEDY):
        state = torch.load(io.BytesIO(content[head:]), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
    return state
