"""`pytest --benchmark`: what it selects and leaves out; nothing is measured here."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import recorded
from benchmarks.harness import Case

ROOT = Path(__file__).parents[2]
CASE = Case("peer_loss", "B=2 C=3", torch.float32, 2_000_000_000, lambda case, device: {})


def test_it_selects_the_benchmarks_and_nothing_else() -> None:
    command = [sys.executable, "-m", "pytest", "--benchmark", "--collect-only", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    collected = [line for line in run.stdout.splitlines() if "::" in line]
    assert {line.split("::")[0] for line in collected} >= {"benchmarks/test_training.py", "benchmarks/test_peer.py"}
    assert all(line.startswith("benchmarks/") for line in collected)


def test_a_case_that_is_too_large_for_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded.now, "effort", recorded.REDUCED)
    with pytest.raises(pytest.skip.Exception, match="moves 2,000 MB: too large for --benchmark"):
        recorded.show(None, CASE, "cpp")


def test_a_suite_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "our_backends", lambda *arguments: [])
    monkeypatch.setattr(recorded, "DEVICE", torch.device("cpu"))

    @recorded.each([CASE])
    def suite(benchmark: object, case: Case, variant: str) -> None: ...

    (parametrized,) = [mark for mark in suite.pytestmark if mark.name == "parametrize"]
    (row,) = parametrized.args[1]
    (skipped,) = row.marks
    assert skipped.name == "skip"
    assert skipped.kwargs["reason"].startswith("no backend of ours serves peer_loss on cpu: cpp: ")
