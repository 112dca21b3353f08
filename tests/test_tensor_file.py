"""Tensors with a header: what comes back, and what is refused in one sentence."""

import re
from pathlib import Path

import pytest
import torch

from tfkd_fast import tensor_file
from tfkd_fast.errors import UserError
from tfkd_fast.settings import Settings
from tfkd_fast.tensor_file import FileKind, ForeignFile

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1], dtype=torch.int64)}


class Header(Settings):
    names: tuple[str, ...]


FILES = FileKind("sample", Header, 2, "table.key", "give another")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES.to_bytes(Header(names=("x", "y")), TENSORS))
    header, tensors = FILES.read(path)
    assert header == Header(names=("x", "y"))
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)
    assert FILES.to_bytes(header, tensors) == path.read_bytes()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"text", "PATH is no sample file of tfkd-fast, or is damaged: give another"),
        (tensor_file.to_bytes("other", {"format": 2, "names": []}, TENSORS), "PATH is no sample file"),
        (tensor_file.to_bytes("sample", ["format"], TENSORS), "PATH is no sample file"),  # type: ignore[arg-type]
        (tensor_file.to_bytes("sample", {"names": []}, TENSORS), "PATH is no sample file"),
        (tensor_file.to_bytes("sample", {"format": 2}, TENSORS), "PATH is no sample file"),
        (FILES.to_bytes(Header(names=()), TENSORS)[:-1], "PATH is no sample file"),
        (
            tensor_file.to_bytes("sample", {"format": 3, "whatever": 1}, TENSORS),
            "the sample PATH has format 3, but this version of tfkd-fast reads format 2",
        ),
        (None, "table.key names PATH, which does not exist: give another"),
    ],
)
def test_anything_else_is_refused(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(sentence.replace("PATH", str(path)))):
        FILES.read(path)


def test_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which cannot be read"):
        FILES.read(tmp_path)


def test_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(tensor_file.to_bytes("sample", {"k": [1, 0.1]}, TENSORS))
    assert tensor_file.read_header(path, "sample") == {"k": [1, 0.1]}
    with pytest.raises(ForeignFile):
        tensor_file.read_header(path, "other")
