"""Compiles csrc/*/cuda.cu for the processor, as operators of the namespace tfkd_fast_on_host for CPU tensors.

The kernels are then tested on machines without a GPU: include/cuda_runtime.h runs them, a fiber a CUDA thread.
"""

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from tfkd_fast.ops import fused

NAMESPACE = "tfkd_fast_on_host"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cuda_on_host"
TORCH = Path(torch.__file__).parent

COMPILER = "g++"
COMPILE = [
    # Measured with csrc/distillation: -O1 takes a third longer to compile and saves a sixth of the running time.
    *("-x", "c++", "-std=c++20", "-Og", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"),
    *("-fno-strict-aliasing", "-fno-extern-tls-init", "-ftrivial-auto-var-init=pattern"),
    "-fsanitize=alignment,bounds,signed-integer-overflow,shift,integer-divide-by-zero,float-cast-overflow",
    *("-Wno-unknown-pragmas", "-DTFKD_ON_HOST", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
    *("-isystem", str(HERE / "include"), "-isystem", str(TORCH / "include")),
]
LINK = ["-shared", f"-L{TORCH / 'lib'}", "-ltorch_cpu"]


@cache
def load() -> dict[str, str]:
    """Load every operator that has a CUDA kernel.

    Returns:
        for each folder of csrc whose kernels do not compile, what the compiler says.
    """
    for operator in fused.DEFINITIONS:
        fused.define_in(NAMESPACE, operator)
    failures = {}
    # The losses take longest: they come first, so that no compiler is alone at the end.
    sources = sorted(ROOT.glob("csrc/*/cuda.cu"), key=lambda source: '"../common/loss.cuh"' not in source.read_text())
    with ThreadPoolExecutor(os.cpu_count()) as compilers:
        libraries = [compilers.submit(library, source) for source in sources]
    for source, compiled in zip(sources, libraries, strict=True):
        if isinstance(error := compiled.exception(), subprocess.CalledProcessError):
            failures[source.parent.name] = error.stderr
        else:
            torch.ops.load_library(compiled.result())
    return failures


def launches(operator: str) -> int:
    """How many kernels the library of a folder of csrc has launched so far."""
    path = library(ROOT / "csrc" / operator / "cuda.cu")
    return ctypes.c_int64.in_dll(ctypes.CDLL(str(path)), "cuda_on_host_launches").value


def missing() -> str | None:
    """Why nothing can be compiled here; None when it can."""
    return None if shutil.which(COMPILER) else f"the compiler {COMPILER} was not found"


@contextmanager
def order(name: str) -> Iterator[None]:
    """Run the threads of a block, and the blocks, in an order: ascending, descending, or a number, a random one's seed.

    Code without a race gives the same in every order.
    """
    before = os.environ.get("CUDA_ON_HOST_ORDER", "ascending")
    os.environ["CUDA_ON_HOST_ORDER"] = name
    try:
        yield
    finally:
        os.environ["CUDA_ON_HOST_ORDER"] = before


def library(source: Path) -> Path:
    """The shared library of one .cu file, compiled where there is none of the same content yet.

    Raises:
        subprocess.CalledProcessError: it does not compile; `stderr` has the compiler's message.
    """
    content = hashlib.sha256(repr((torch.__version__, COMPILER, COMPILE, LINK)).encode())
    folders = (source.parent, ROOT / "csrc" / "common", HERE / "include")
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".cu", ".cuh", ".h"))
    for file in files:
        content.update(file.read_bytes())

    name = f"{source.parent.name}-{source.stem}"
    path = BUILD / f"{name}-{content.hexdigest()[:16]}.so"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may ask for it at once
        if path.exists():
            return path
        for old in BUILD.glob(f"{name}-????????????????.so"):
            old.unlink()
        compiled, linked = BUILD / f"{name}.o", BUILD / f"{name}.so"
        _run([COMPILER, *COMPILE, "-c", str(source), "-o", str(compiled)])
        _run([COMPILER, str(compiled), *LINK, "-o", str(linked)])  # the reports of the checks are our own
        compiled.unlink()
        linked.replace(path)
    return path


def run_between_guard_pages(script: str, edge: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that is stopped where it touches memory "before" or "behind" that of a tensor."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        guard = Path(folder) / "guard_pages.so"
        _run([COMPILER, "-x", "c", "-O1", "-fPIC", "-shared", str(HERE / "guard_pages.c"), "-o", str(guard)])
        environment = os.environ | {"LD_PRELOAD": str(guard), "GUARD_PAGES": edge}
        command = [sys.executable, "-c", script]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
