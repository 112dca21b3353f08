"""Run folders with made-up numbers."""

from pathlib import Path

import pytest

from tests.support.run_folders import MakeRun, run_maker


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    return run_maker(tmp_path)
