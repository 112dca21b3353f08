"""The CUDA kernels compile for each architecture without a spill; the libraries need nothing but torch's stable ABI.

Whether a kernel spills is read from what ptxas said when the package was installed; no GPU is needed for it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from tests.wheel.builds import ROOT, build_wheel, needs_cpp, unpacked_wheel
from tfkd_fast.ops import backends, native

NOT_BUILT = native.not_built("the CUDA library")
needs_nvcc = pytest.mark.skipif(NOT_BUILT is not None, reason=str(NOT_BUILT))
ARCHITECTURES = re.findall(r"\d+", native.build_information().cuda_architectures) if not NOT_BUILT else []
CUDA_SOURCES = sorted(ROOT.glob("csrc/*/cuda.cu"))
LIBRARIES = ["libtfkd_fast.so", pytest.param("libtfkd_fast_cuda.so", marks=needs_nvcc)]


@needs_nvcc
@pytest.mark.parametrize("operator", [file.parent.name for file in CUDA_SOURCES])
def test_no_kernel_spills(operator: str) -> None:
    kernels = [kernel for kernel in native.kernels() if kernel["operator"] == operator]
    compiled = {(kernel["kernel"], kernel["architecture"]) for kernel in kernels}
    names = {name for name, _ in compiled}
    assert names
    assert compiled == set(product(names, ARCHITECTURES))
    spilling = [
        f"{kernel['kernel']} on sm_{kernel['architecture']} ({kernel['registers']} registers): "
        f"{kernel['spill_store_bytes']} bytes stored, {kernel['spill_load_bytes']} loaded"
        for kernel in kernels
        if (kernel["spill_store_bytes"], kernel["spill_load_bytes"]) != ("0", "0")
    ]
    assert not spilling, "\n".join(spilling)


SPILLS = """
#include <cuda_runtime.h>
// A thread of 1,024 has 64 registers, and all 96 values are needed at once.
__global__ void __launch_bounds__(1024) holds_too_much(const float* in, float* out, int n) {
  float values[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) values[i] = in[i * n + threadIdx.x];
  for (int round = 0; round < n; ++round) {
#pragma unroll
    for (int i = 0; i < 96; ++i) values[i] = values[i] * values[(i + 7) % 96] + in[round];
  }
#pragma unroll
  for (int i = 0; i < 96; ++i) out[i * n + threadIdx.x] = values[i];
}
__global__ void holds_little(float* out) { out[threadIdx.x] = 1; }
"""


@needs_nvcc
def test_the_report_tells_which_kernel_spills_and_an_error_stops_the_build(small_source: Path) -> None:
    (small_source / "csrc" / "empty" / "cuda.cu").write_text(SPILLS)
    (small_source / "pybind11.py").write_text("raise ImportError\n")  # its modules take as long as the rest
    build = build_wheel(small_source, PYTHONPATH=str(small_source))
    assert build.returncode == 0, build.stdout + build.stderr
    code = "import json; from tfkd_fast.ops import native; print(json.dumps(native.kernels()))"
    installed = unpacked_wheel(small_source)
    run = subprocess.run([sys.executable, "-c", code], cwd=installed, stdout=subprocess.PIPE, text=True, check=True)
    found = {
        (kernel["operator"], re.sub(r"^_Z\d+|P.*", "", kernel["kernel"]), kernel["architecture"]): kernel
        for kernel in json.loads(run.stdout)
    }
    assert set(found) == {
        ("empty", name, architecture) for name in ("holds_too_much", "holds_little") for architecture in ("80", "90")
    }
    for (_, name, _), kernel in found.items():
        stored, loaded = int(kernel["spill_store_bytes"]), int(kernel["spill_load_bytes"])
        if name == "holds_too_much":
            assert kernel["registers"] == "64"
            assert stored >= 4 * (96 - 64)
            assert loaded >= stored
        else:
            assert (stored, loaded) == (0, 0)

    (small_source / "csrc" / "empty" / "cuda.cu").write_text("not CUDA\n")
    build = build_wheel(small_source, PYTHONPATH=str(small_source))
    assert build.returncode != 0
    assert "cuda.cu(1): error" in build.stdout + build.stderr


@needs_nvcc
@pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA")
def test_the_cuda_library_has_every_operator() -> None:
    """In a new process: without a driver the library is not loaded into this one."""
    names = [f"tfkd_fast::{name}" for name, implementations in backends.operators.items() if "cuda" in implementations]
    code = f"""
import torch
from tfkd_fast.ops import backends, native
torch.ops.load_library(native.FOLDER / "libtfkd_fast_cuda.so")
print(*(name for name in {names} if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")))
"""
    run = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


@needs_cpp
@pytest.mark.skipif(shutil.which("nm") is None or shutil.which("readelf") is None, reason="needs nm and readelf")
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_needs_only_the_stable_abi(library: str) -> None:
    path = native.FOLDER / library
    symbols = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True).stdout
    needed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    from_torch = {line.split()[-1] for line in symbols.splitlines() if re.search("aoti_torch|torch_|at|c10", line)}
    assert "aoti_torch_get_dim" in from_torch or "aoti_torch_get_sizes" in from_torch  # the list is what it should be
    assert not [name for name in from_torch if re.match("_ZNK?(2at|3c10|5torch)", name)]
    assert "libtorch" in needed
    assert "libpython" not in needed
    assert "RPATH" not in needed
    assert "RUNPATH" not in needed
    assert "libcudart" not in needed
