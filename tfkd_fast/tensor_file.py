"""Files of named tensors in the safetensors format, with a description of them as JSON in the header.

The header has a single entry, because safetensors writes several entries in an order that changes between processes.
Its last key, `sha256`, is the digest of the description and of all tensors, which is verified whenever a file is read;
files of versions up to 0.1 have none and are read without.
"""

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.files import WrongChecksum, open_regular, parse_json, reading
from tfkd_fast.settings import Settings
from tfkd_fast.strict_json import to_json

Header = TypeVar("Header", bound=Settings)
Tensors = dict[str, Tensor]
CHECKSUM = "sha256"


def to_bytes(kind: str, header: dict[str, Any], tensors: Tensors) -> bytes:
    """Return the bytes of a file.

    Args:
        kind: name of the header's entry.
        header: values that JSON can hold.
        tensors: the tensors by name, on the CPU and contiguous.
    """
    described = header | {CHECKSUM: _digest(kind, header, tensors)}
    return safetensors.torch.save(tensors, metadata={kind: to_json(described)})


def read(path: Path, kind: str) -> tuple[dict[str, Any], Tensors]:
    """Read the header of a file of a kind, as given to `to_bytes`, and all tensors to the CPU.

    For a block of `reading`, which turns whatever this raises into a sentence.

    Raises:
        OSError: the file is missing or cannot be read.
        WrongChecksum: the file is damaged.
        ValueError: the file is of another kind.
        Exception: what safetensors raises for a file that is damaged or of another format.
    """
    open_regular(path).close()
    with safetensors.safe_open(path, "pt") as file:
        entries = file.metadata() or {}
    if kind not in entries:
        raise ValueError(f"it is no {kind} file of tfkd-fast")
    header, tensors = parse_json(entries[kind]), safetensors.torch.load_file(path)
    if CHECKSUM in header and header.pop(CHECKSUM) != _digest(kind, header, tensors):
        raise WrongChecksum
    return header, tensors


def _digest(kind: str, header: dict[str, Any], tensors: Tensors) -> str:
    """The SHA-256, in hexadecimal, of the header's values and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    names = sorted(tensors)
    shapes = [(name, str(tensors[name].dtype), list(tensors[name].shape)) for name in names]
    digest.update(to_json([kind, header, shapes]).encode())
    for name in names:
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class FileKind(Generic[Header]):
    """One kind of files, which a setting of recipes names; files of another format version are refused."""

    name: str
    """Name of the kind, in headers and error messages."""
    header: type[Header]
    """Model of the header."""
    format_version: int
    """Version of the format that is written and read."""
    setting: str
    """The setting that names a file, for error messages."""
    remedy: str
    """The advice at the end of an error message, such as what to give as the setting."""

    def to_bytes(self, header: Header, tensors: Tensors) -> bytes:
        """Return the bytes of a file of this kind."""
        return to_bytes(self.name, {"format": self.format_version, **header.model_dump(mode="json")}, tensors)

    def read(self, path: Path) -> tuple[Header, Tensors]:
        """Read the header and the tensors of a file.

        Raises:
            UserError: the file is missing, unreadable, damaged, or of another kind or format version.
        """
        with self.reading(path):
            values, tensors = read(path, self.name)
            version = values.pop("format", None)
            if version is None:
                raise ValueError("it has no format")
            if version != self.format_version:
                raise UserError(
                    f"the {self.name} {path} has format {version}, but this version of tfkd-fast reads "
                    f"format {self.format_version}"
                )
            return self.header.model_validate(values), tensors

    def reading(self, path: Path) -> AbstractContextManager[None]:
        """Context manager for a block that reads or checks a file of this kind, see `tfkd_fast.files.reading`."""
        return reading(path, f"the {self.name}", f"for {self.setting}, {self.remedy}")
