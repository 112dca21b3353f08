"""Work that is done once for all tests, in whichever processes they run."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


class Once:
    """Folders that the first test that needs one fills, while others that need it wait.

    They lie side by side in a folder of the test session, which all of its processes share.
    """

    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        own = tmp_path_factory.getbasetemp()
        self._shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def __call__(self, name: str, fill: Callable[[Path], object]) -> Path:
        """The folder of this name; where it is not filled yet, `fill` is called with it."""
        folder, filled = self._shared / name, self._shared / f"{name}.filled"
        with FileLock(self._shared / f"{name}.lock"):
            if not filled.exists():
                folder.mkdir(exist_ok=True)  # it is there where an earlier attempt failed
                fill(folder)
                filled.touch()
        return folder
