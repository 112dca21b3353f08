"""Wheels built from a copy of the source tree, and what is in them."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tfkd_fast
from tfkd_fast.ops import backends

ROOT = Path(tfkd_fast.__file__).resolve().parents[1]
needs_cpp = pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))

ENTRIES = ["setup.py", "build_backend.py", "MANIFEST.in", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"]
ENTRIES += ["csrc", "kernels", "tfkd_fast"]
NO_CUDA = {"CUDACXX": "/nonexistent/nvcc"}


def build_wheel(source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The hook that pip calls, without isolation."""
    return build("wheel", source, **environment)


def build(kind: str, source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The hook for a wheel or an sdist."""
    return call_backend(f"build_{kind}('dist')", source, **environment)


def call_backend(call: str, source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call a hook of the build backend, and print what it returns."""
    code = f"import build_backend; print(build_backend.{call})"
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "CUDAARCHS")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=kept | environment, capture_output=True, text=True
    )


def unpacked_wheel(source: Path) -> Path:
    (wheel,) = (source / "dist").glob("*.whl")
    tag = wheel.name.removeprefix(f"tfkd_fast-{tfkd_fast.__version__}-py3-none-").removesuffix(".whl")
    with zipfile.ZipFile(wheel) as archive:
        compiled = any(name.endswith(".so") for name in archive.namelist())
        (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        told = archive.read(about).decode()
    assert (tag != "any") == compiled
    assert f"Tag: py3-none-{tag}\n" in told
    assert f"Root-Is-Purelib: {str(not compiled).lower()}\n" in told
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(source / "installed")
    return source / "installed"
