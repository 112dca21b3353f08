"""The compiled libraries: loading, the reason if one is missing, and how they were built."""

import csv
import ctypes
import importlib
import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch

FOLDER = Path(__file__).resolve().parents[1] / "native"
"""Folder of the compiled libraries."""
CPP_LIBRARY = FOLDER / "libtfkd_fast.so"
"""The operators for CPU tensors."""


class NativeLibrary(NamedTuple):
    """The status of a library of compiled operators."""

    missing: str | None
    """Why the library is not loaded; None if it is."""
    about: str
    """How the library was built; empty if it is not loaded."""


def build_information() -> Any | None:
    """The module `build_info` (csrc/build_info/bindings.cpp); None where it was left out or is for another Python."""
    try:
        return importlib.import_module("tfkd_fast.native.build_info")
    except ImportError:
        return None


def not_built(part: str) -> str | None:
    """Return why a part of the build was left out, and the remedy; None if it was built.

    Args:
        part: "the C++ library", "the CUDA library", "the build information" or "the autograd extension".
    """
    try:
        reasons = json.loads((FOLDER / "missing.json").read_text())
    except OSError:
        return f"{part} is not built: install the package with pip"
    if part not in reasons:
        return None
    return f"{part} is not built: {reasons[part]} when the package was installed; fix that and reinstall"


def kernels() -> list[dict[str, str]]:
    """Return the resources of each CUDA kernel on each architecture as ptxas reported them.

    They are registers, bytes of stack and bytes of spills; the list is empty if no CUDA library was built.
    """
    try:
        with (FOLDER / "cuda_kernels.csv").open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def load_cpp() -> NativeLibrary:
    """Load the operators for CPU tensors."""
    build = build_information()
    about = f"built by {build.compiler} against torch {build.torch}, {build.vector_level()}" if build else "compiled"
    return _load("the C++ library", CPP_LIBRARY.name, about)


def load_cuda() -> NativeLibrary:
    """Load the operators for CUDA tensors if torch and the driver can run them."""
    build = build_information()
    reason = why_no_cuda(None if build is None else build.cuda_compiler)
    if reason is not None:
        return NativeLibrary(reason, "")
    about = f"built by nvcc {build.cuda_compiler} for {build.cuda_architectures}" if build else "compiled"
    return _load("the CUDA library", "libtfkd_fast_cuda.so", about)


class Extension(NamedTuple):
    """The status of a Python module of compiled code."""

    missing: str | None
    """Why the module is not loaded; None if it is."""
    module: Any | None
    """The module; None where it is not loaded."""


def load_autograd() -> Extension:
    """Load the module `autograd` (csrc/autograd/bindings.cpp), which is for one version of Python and of torch."""
    build, reason = build_information(), not_built("the autograd extension")
    if reason is None:
        if build is None:
            reason = f"it is for another Python than {platform.python_version()}: install the package from its source"
        elif build.torch != torch.__version__:
            reason = f"it is for torch {build.torch}, not for {torch.__version__}: install the package from its source"
    if reason is None:
        try:
            return Extension(None, importlib.import_module("tfkd_fast.native.autograd"))
        except ImportError as error:
            reason = f"it does not load ({error}): install the package again"
    return Extension(reason, None)


def _load(part: str, file: str, about: str) -> NativeLibrary:
    reason = not_built(part)
    if reason is None:
        try:
            torch.ops.load_library(FOLDER / file)
        except OSError as error:
            reason = f"{part} does not load ({error}): install the package again"
    return NativeLibrary(reason, "" if reason else about)


def why_no_cuda(cuda: str | None) -> str | None:
    """Return why kernels of this CUDA version cannot run here; None if torch and the driver can run them."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: install one with CUDA"
    driver = driver_version()
    if driver is None:
        return "no NVIDIA driver was found: it needs a GPU with one"
    # Within a major version, a driver runs kernels of newer CUDA versions, too.
    if cuda and driver[0] < int(cuda.partition(".")[0]):
        return f"the NVIDIA driver is for CUDA {driver[0]}.{driver[1]}, the library for {cuda}: install a newer driver"
    return None


def driver_version() -> tuple[int, int] | None:
    """Return the CUDA version of the driver without initialising CUDA, so that the process can still fork."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10
