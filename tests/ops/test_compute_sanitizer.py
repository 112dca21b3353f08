"""NVIDIA's compute-sanitizer over every CUDA kernel: no foreign memory, no race in shared memory, no barrier that some
threads miss. (tests/cuda_on_host looks for the same on the processor.)"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_on_host import calls

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer"),
]
ROOT = Path(__file__).parents[2]
CALLS = """
import tfkd_fast.ops
from tests.cuda_on_host import calls
calls.make_all("tfkd_fast", "cuda")
"""
FOREIGN_STORE = """
import torch, triton, triton.language as tl
@triton.jit
def store(values, position):
    tl.store(values + position, 1.0)
store[(1,)](torch.zeros(4, device="cuda"), 1_000_000)
torch.cuda.synchronize()
"""
FOUND = 99


def run(tool: str, script: Path) -> subprocess.CompletedProcess[str]:
    """`script` is a file, because Triton reads the source of its kernels."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # so that memory ends where a tensor does
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, str(script)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "Device not supported" in result.stdout + result.stderr:
        pytest.skip("compute-sanitizer does not support this device here")
    return result


def test_it_sees_foreign_memory(tmp_path: Path) -> None:
    (tmp_path / "store.py").write_text(FOREIGN_STORE)
    result = run("memcheck", tmp_path / "store.py")
    assert result.returncode == FOUND, result.stdout + result.stderr
    assert "Invalid __global__ write" in result.stdout + result.stderr


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_it_finds_nothing(tool: str, tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(CALLS)
    result = run(tool, tmp_path / "calls.py")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert [line for line in result.stdout.splitlines() if line in calls.OPERATORS] == list(calls.OPERATORS)
