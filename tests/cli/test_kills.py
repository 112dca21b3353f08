"""A command that is killed at random moments goes on to the same bits; `python -m tests.kills` tries all of them."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_killed_command_goes_on_to_the_same_bits() -> None:
    program = [sys.executable, "-m", "tests.kills", "--kills", "2", "--only", "train"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 kills went on to the same bits" in done.stdout
