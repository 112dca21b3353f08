"""Exports are whole or not there."""

import resource
from pathlib import Path

from tests.support.command import refusal
from tests.support.runs import recipe
from tfkd_fast import api


def test_a_full_disk_leaves_no_part_of_an_export(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    api.train(recipe("ce", epochs=1), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "student.safetensors").stat().st_size // 2, hard))
    try:
        message = refusal("export", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"cannot write {tmp_path / 'student.pt2'}: File too large" in message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
