"""Copies of the source tree to build wheels from."""

import shutil
from pathlib import Path

import pytest

from tests.wheel.builds import ENTRIES, ROOT


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the source tree, so that a build leaves no trace in the original."""
    copy = tmp_path / "source"
    copy.mkdir()
    for entry in ENTRIES:
        if (ROOT / entry).is_dir():
            shutil.copytree(ROOT / entry, copy / entry, ignore=shutil.ignore_patterns("__pycache__", "native"))
        else:
            shutil.copy(ROOT / entry, copy / entry)
    return copy


@pytest.fixture
def small_source(source: Path) -> Path:
    """The same with a single, empty operator, which compiles in seconds."""
    for folder in source.glob("csrc/*"):
        if folder.name != "build_info":
            shutil.rmtree(folder)
    (source / "csrc" / "empty").mkdir()
    (source / "csrc" / "empty" / "cpu.cpp").write_text("#include <torch/csrc/stable/library.h>\n")
    return source
