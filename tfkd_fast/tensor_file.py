"""Files of named tensors in the safetensors format, with a description of them as JSON in the header.

The header has a single entry, because safetensors writes several entries in an order that changes between processes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.settings import Settings
from tfkd_fast.strict_json import to_json

Header = TypeVar("Header", bound=Settings)


class ForeignFile(Exception):
    """The file is damaged or of another kind."""


def to_bytes(kind: str, header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """Return the bytes of a file.

    Args:
        kind: name of the header's entry.
        header: values that JSON can hold.
        tensors: the tensors by name.
    """
    return safetensors.torch.save(tensors, metadata={kind: to_json(header)})


def read_header(path: Path, kind: str) -> dict[str, Any]:
    """Read the header of a file of a kind, as given to `to_bytes`.

    Raises:
        OSError: the file is missing or cannot be read.
        ForeignFile: the file is damaged or of another kind.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[kind])
    except (safetensors.SafetensorError, KeyError, ValueError):
        raise ForeignFile from None
    if not isinstance(header, dict):
        raise ForeignFile
    return header


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file to the CPU.

    Raises:
        OSError: the file is missing or cannot be read.
        ForeignFile: the file is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError:
        raise ForeignFile from None


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

    def to_bytes(self, header: Header, tensors: dict[str, Tensor]) -> bytes:
        """Return the bytes of a file of this kind."""
        return to_bytes(self.name, {"format": self.format_version, **header.model_dump(mode="json")}, tensors)

    def read(self, path: Path) -> tuple[Header, dict[str, Tensor]]:
        """Read the header and the tensors of a file.

        Raises:
            UserError: the file is missing, unreadable, damaged, or of another kind or format version.
        """
        try:
            values, tensors = read_header(path, self.name), read_tensors(path)
            version = values.pop("format")
        except FileNotFoundError:
            raise UserError(f"{self.setting} names {path}, which does not exist: {self.remedy}") from None
        except OSError as error:
            raise UserError(f"{self.setting} names {path}, which cannot be read: {error}") from None
        except (ForeignFile, KeyError):
            raise self.foreign(path) from None
        if version != self.format_version:
            raise UserError(
                f"the {self.name} {path} has format {version}, but this version of tfkd-fast reads "
                f"format {self.format_version}"
            )
        try:
            return self.header.model_validate(values), tensors
        except ValidationError:
            raise self.foreign(path) from None

    def foreign(self, path: Path) -> UserError:
        """Return the error for a file that is damaged or of another kind."""
        return UserError(f"{path} is no {self.name} file of tfkd-fast, or is damaged: {self.remedy}")
