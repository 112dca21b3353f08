"""Commands that are killed at random moments go on to the same bits; `python -m tests.kills` tries more of them."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("signals", [False, True])
def test_killed_commands_go_on_to_the_same_bits(signals: bool) -> None:
    program = [sys.executable, "-m", "tests.kills", "--kills", "3", "--only", "train,overwrite,learn"]
    done = subprocess.run([*program, *(["--signals"] if signals else [])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 kills went on to the same bits" in done.stdout
