"""Named tensors in a file that anyone can load: safetensors, with what they mean as JSON in the header.

The header has one entry: safetensors writes several in an order that changes from process to process.
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

Header = TypeVar("Header", bound=Settings)


class ForeignFile(Exception):
    """Damaged, or of another kind."""


def to_bytes(kind: str, header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """The content of a file; `kind` names the entry of its header."""
    return safetensors.torch.save(tensors, metadata={kind: json.dumps(header)})


def read_header(path: Path, kind: str) -> dict[str, Any]:
    """What `to_bytes` wrote beside the tensors.

    Raises:
        OSError: if it is missing or cannot be read.
        ForeignFile: if it is no file of that kind.
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
    """All tensors, on the CPU. Raises OSError or ForeignFile."""
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError:
        raise ForeignFile from None


@dataclass(frozen=True)
class FileKind(Generic[Header]):
    """Files of one kind, which a setting names; those of another format are refused."""

    name: str
    header: type[Header]
    format: int
    setting: str
    remedy: str
    """What to give as the setting."""

    def to_bytes(self, header: Header, tensors: dict[str, Tensor]) -> bytes:
        return to_bytes(self.name, {"format": self.format, **header.model_dump(mode="json")}, tensors)

    def read(self, path: Path) -> tuple[Header, dict[str, Tensor]]:
        """Header and tensors.

        Raises:
            UserError: if the file is missing, unreadable, damaged, of another kind or format.
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
        if version != self.format:
            raise UserError(
                f"the {self.name} {path} has format {version}, but this version of tfkd-fast reads format {self.format}"
            )
        try:
            return self.header.model_validate(values), tensors
        except ValidationError:
            raise self.foreign(path) from None

    def foreign(self, path: Path) -> UserError:
        return UserError(f"{path} is no {self.name} file of tfkd-fast, or is damaged: {self.remedy}")
