"""Tensors with a header: what comes back, and what is refused in one sentence."""

import json
import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tfkd_fast import tensor_file
from tfkd_fast.errors import UserError
from tfkd_fast.files import WrongChecksum
from tfkd_fast.settings import Settings
from tfkd_fast.tensor_file import FileKind

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
    ("content", "reason"),
    [
        (b"text", "Error while deserializing header"),
        (b"", "Error while deserializing header"),
        (tensor_file.to_bytes("other", {"format": 2, "names": []}, TENSORS), "it is no sample file of tfkd-fast"),
        (safetensors.torch.save(TENSORS), "it is no sample file of tfkd-fast"),
        (safetensors.torch.save(TENSORS, {"sample": "["}), "Expecting value"),
        (safetensors.torch.save(TENSORS, {"sample": '["format"]'}), "it is a list"),
        (safetensors.torch.save(TENSORS, {"sample": "[" * 100_000}), "it is nested too deeply"),
        (safetensors.torch.save(TENSORS, {"sample": '{"sha256": 5, "names": []}'}), "its checksum is wrong"),
        (tensor_file.to_bytes("sample", {"names": []}, TENSORS), "it has no format"),
        (tensor_file.to_bytes("sample", {"format": 2}, TENSORS), "names: Field required"),
        (tensor_file.to_bytes("sample", {"format": 2, "names": [5]}, TENSORS), "names.0: Input should be a valid"),
        (tensor_file.to_bytes("sample", {"format": 2, "names": [], "x": 1}, TENSORS), "x: Extra inputs"),
        (FILES.to_bytes(Header(names=()), TENSORS)[:-1], "Error while deserializing header"),
    ],
)
def test_what_is_damaged_or_of_another_kind_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    beginning = f"the sample {path} is damaged or of another kind ({reason}"
    with pytest.raises(UserError, match=f"{re.escape(beginning)}.*: for table.key, give another$"):
        FILES.read(path)


def test_another_version_of_the_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(tensor_file.to_bytes("sample", {"format": 3, "whatever": 1}, TENSORS))
    sentence = f"the sample {path} has format 3, but this version of tfkd-fast reads format 2"
    with pytest.raises(UserError, match=re.escape(sentence)):
        FILES.read(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, fault in {"nothing": "does not exist", ".": "is a folder", "pipe": "is no regular file"}.items():
        with pytest.raises(UserError, match=f"the sample .* {fault}.*: for table.key, give another"):
            FILES.read(tmp_path / name)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """In tensors, their names and shapes, the header and its checksum: refused, or nothing that is read differs."""
    path = tmp_path / "file"
    content = FILES.to_bytes(Header(names=("x", "y")), TENSORS)
    refused = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            header, tensors = FILES.read(path)
        except UserError:
            refused += 1
            continue
        assert header == Header(names=("x", "y"))
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert refused > 0.99 * len(content)


def test_a_file_of_an_earlier_version_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(safetensors.torch.save(TENSORS, {"sample": '{"format": 2, "names": ["x"]}'}))
    assert FILES.read(path)[0] == Header(names=("x",))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.float64])
def test_tensors_of_any_dtype_and_shape_have_a_checksum(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "file"
    tensors = {"scalar": torch.ones((), dtype=dtype), "none": torch.ones(0, 3, dtype=dtype)}
    path.write_bytes(tensor_file.to_bytes("sample", {"k": [1, 0.1]}, tensors))
    header, read = tensor_file.read(path, "sample")
    assert header == {"k": [1, 0.1]}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    other = tensors | {"scalar": torch.zeros((), dtype=dtype)}
    path.write_bytes(safetensors.torch.save(other, {"sample": json.dumps(header | {"sha256": _stored(path)})}))
    with pytest.raises(WrongChecksum):
        tensor_file.read(path, "sample")


def _stored(path: Path) -> str:
    with safetensors.safe_open(path, "pt") as file:
        return str(json.loads(file.metadata()["sample"])["sha256"])
