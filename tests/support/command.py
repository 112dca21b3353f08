"""The `tfkd-fast` command as a person runs it: in this process, or in one of its own where that matters."""

import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

from tfkd_fast.cli import main

SMALL = ["--device", "cpu", "--precision", "fp32", "--set", "model.width=0.125", "--batch-size", "128"]


class Ended(NamedTuple):
    """What a command leaves behind beside its files."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str | Path) -> list[str]:
    """For a process of its own."""
    return [sys.executable, "-m", "tfkd_fast", *map(str, arguments)]


def run(*arguments: str | Path, ok: bool = True) -> Ended:
    """The command, in this process, which has imported all that takes long to import."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["tfkd-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    result = Ended(end.value.code, out.getvalue(), err.getvalue())
    assert result.returncode == 0 or not ok, result.stdout + result.stderr
    return result


def run_alone(*arguments: str | Path, ok: bool = True) -> Ended:
    """The command, in a process of its own."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not ok, done.stdout + done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


def refusal(*arguments: str | Path) -> str:
    """The one sentence of a refused command."""
    return sentence_of(run(*arguments, ok=False))


def sentence_of(refused: Ended) -> str:
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    return refused.stderr.strip()


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(parent: int) -> list[int]:
    """The processes that a process started."""
    numbers = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [number for number in numbers if parent_of(number) == parent]


def parent_of(process: int) -> int | None:
    """The process that started another one; None where that has ended."""
    try:
        return int(Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
