"""The package installs without a compiler and says why the C++ operators are missing; with one, they load."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import tfkd_fast
from tfkd_fast.ops import backends

ROOT = Path(tfkd_fast.__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree, not an installation")

ENTRIES = ["setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"]
ENTRIES += ["csrc", "kernels", "recipes", "tfkd_fast"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the source tree, so that a build leaves no trace in the original."""
    copy = tmp_path / "source"
    copy.mkdir()
    for entry in ENTRIES:
        if (ROOT / entry).is_dir():
            shutil.copytree(ROOT / entry, copy / entry, ignore=shutil.ignore_patterns("__pycache__", "native"))
        else:
            shutil.copy(ROOT / entry, copy / entry)
    return copy


def build_wheel(source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The hook that pip calls, without isolation."""
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=kept | environment, capture_output=True, text=True
    )


def unpacked_wheel(source: Path) -> Path:
    (wheel,) = (source / "dist").glob("*.whl")
    assert wheel.name.startswith(f"tfkd_fast-{tfkd_fast.__version__}-py3-none-")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(source / "installed")
    return source / "installed"


@pytest.mark.parametrize("environment", [{"PATH": "/nonexistent"}, {"CXX": "/nonexistent/c++"}])
def test_without_a_compiler_the_package_is_pure_python(source: Path, environment: dict[str, str]) -> None:
    build = build_wheel(source, **environment)
    assert build.returncode == 0, build.stderr
    reason = "a C++20 compiler not found when the package was installed"
    assert f"the C++ operators are left out, the package works without them: {reason}" in build.stderr
    installed = unpacked_wheel(source)
    assert not list(installed.rglob("*.so"))

    code = """
import torch, tfkd_fast.kernels
from importlib.resources import files
from tfkd_fast import ops
z = torch.zeros(1, 2, requires_grad=True)
ops.soft_target_loss(z, torch.zeros(1, dtype=torch.int64), torch.eye(2)).backward()
(row,) = (row for row in ops.status() if row.name == "soft_target_loss")
(cpp,) = (backend for backend in row.backends if backend.name == "cpp")
print(ops.__file__, files("tfkd_fast.recipes").joinpath("digits.toml").is_file(), cpp.state, cpp.reason, sep="\\n")
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=installed, env=os.environ, capture_output=True, text=True, check=True
    )
    where, recipe, state, why = run.stdout.splitlines()
    assert Path(where).is_relative_to(installed)
    assert (recipe, state, why) == ("True", "refused", f"the C++ library is not built: {reason}")


@pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))
def test_an_error_in_the_sources_stops_the_build(source: Path) -> None:
    (source / "csrc" / "soft_target" / "cpu.cpp").write_text("not C++\n")
    build = build_wheel(source)
    assert build.returncode != 0
    assert "cpu.cpp:1" in build.stdout + build.stderr


@pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))
def test_the_built_library_loads_and_records_its_build() -> None:
    folder = Path(tfkd_fast.__file__).parent / "native"
    record = json.loads((folder / "build.json").read_text())
    assert set(record) == {"compiler", "flags", "torch"}
    assert "-ffast-math" not in record["flags"]
    assert "-DTORCH_TARGET_VERSION=0x020b000000000000" in record["flags"]
    assert str(folder / "libtfkd_fast.so") in torch.ops.loaded_libraries
    labels = torch.zeros(1, dtype=torch.int64)
    loss, _ = torch.ops.tfkd_fast.soft_target_loss(torch.zeros(1, 2), labels, torch.eye(2), None, None, True, "mean")
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
