"""Copies of the source tree to build wheels from."""

import shutil
from pathlib import Path

import pytest

from tests.wheel.builds import ENTRIES, ROOT

IGNORED = shutil.ignore_patterns("__pycache__", "native")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the source tree, so that a build leaves no trace in the original."""
    copy = tmp_path / "source"
    copy.mkdir()
    for entry in ENTRIES:
        if (ROOT / entry).is_dir():
            shutil.copytree(ROOT / entry, copy / entry, symlinks=True, ignore=IGNORED)
        else:
            shutil.copy(ROOT / entry, copy / entry)
    return copy


@pytest.fixture
def small_source(source: Path) -> Path:
    """The same with a single, empty operator, which compiles in seconds, and an extension that does not compile."""
    for folder in source.glob("csrc/*"):
        if folder.name not in ("autograd", "build_info", "common"):
            shutil.rmtree(folder)
    for file in source.glob("csrc/common/*.cpp"):
        file.unlink()
    (source / "csrc" / "autograd" / "bindings.cpp").write_text("not C++\n")
    (source / "csrc" / "empty").mkdir()
    (source / "csrc" / "empty" / "cpu.cpp").write_text("int empty() { return 0; }\n")
    return source
