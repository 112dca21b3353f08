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

ENTRIES = ["setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"]
ENTRIES += ["csrc", "kernels", "tfkd_fast"]
NO_CUDA = {"CUDACXX": "/nonexistent/nvcc"}


def build_wheel(source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The hook that pip calls, without isolation."""
    return build("wheel", source, **environment)


def build(kind: str, source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The hook for a wheel or an sdist."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "CUDAARCHS")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=kept | environment, capture_output=True, text=True
    )


def unpacked_wheel(source: Path) -> Path:
    (wheel,) = (source / "dist").glob("*.whl")
    assert wheel.name.startswith(f"tfkd_fast-{tfkd_fast.__version__}-py3-none-")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(source / "installed")
    return source / "installed"
