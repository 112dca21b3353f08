"""A build starts from whatever an earlier one left, and CXX may hold more than a path."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.wheel.builds import NO_CUDA, ROOT, build_wheel, needs_cpp, unpacked_wheel

GXX = shutil.which("g++") or ""
pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree, not an installation"),
    pytest.mark.skipif(not GXX or os.name != "posix", reason="needs g++"),
    needs_cpp,
]


@pytest.fixture
def build_cpp(small_source: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Builds the C++ library alone, which is the quickest."""
    (small_source / "pybind11.py").write_text("raise ImportError\n")

    def run(source: Path = small_source, **environment: str) -> subprocess.CompletedProcess[str]:
        shutil.rmtree(source / "dist", ignore_errors=True)
        return build_wheel(source, **{"PYTHONPATH": str(source), "CXX": GXX, **NO_CUDA, **environment})

    return run


Build = Callable[..., subprocess.CompletedProcess[str]]


def test_a_build_folder_that_does_not_fit_is_made_afresh(small_source: Path, build_cpp: Build, tmp_path: Path) -> None:
    first = build_cpp()
    assert first.returncode == 0, first.stdout + first.stderr
    again = build_cpp()
    assert (again.returncode, "afresh" in first.stdout + again.stdout) == (0, False)

    moved = tmp_path / "moved here"
    small_source.rename(moved)
    other = tmp_path / "other" / "g++"
    other.parent.mkdir()
    other.symlink_to(GXX)
    cache = moved / "build" / "native" / "CMakeCache.txt"

    run = build_cpp(moved)
    assert (run.returncode, run.stdout.count("built afresh")) == (0, 1), run.stdout + run.stderr
    assert f"it belongs to {small_source}" in run.stdout

    run = build_cpp(moved, CXX=str(other))
    assert (run.returncode, run.stdout.count("built afresh")) == (0, 1), run.stdout + run.stderr
    assert f"it was made with {GXX}" in run.stdout

    cache.write_text(cache.read_text().replace("CMAKE_GENERATOR:INTERNAL=Ninja", "CMAKE_GENERATOR:INTERNAL=Other"))
    run = build_cpp(moved, CXX=str(other))
    assert (run.returncode, run.stdout.count("built afresh")) == (0, 1), run.stdout + run.stderr
    assert "it was made for Other" in run.stdout
    assert (unpacked_wheel(moved) / "tfkd_fast" / "native" / "libtfkd_fast.so").is_file()


def test_cxx_may_hold_a_launcher_and_flags(small_source: Path, build_cpp: Build, tmp_path: Path) -> None:
    source = small_source / "csrc" / "empty" / "cpu.cpp"
    source.write_text('#if ASKED_FOR != 1\n#error "no flag"\n#endif\n' + source.read_text())
    launcher, launched = tmp_path / "launcher.sh", tmp_path / "launched"
    launcher.write_text(f'echo "$*" >> "{launched}"\nexec "$@"\n')

    run = build_cpp(CXX=f"sh {launcher} g++ -DASKED_FOR=1 -m64")
    assert run.returncode == 0, run.stdout + run.stderr
    assert any("cpu.cpp.o" in line and "-m64" in line for line in launched.read_text().splitlines())

    launched.unlink()
    run = build_cpp()
    assert run.returncode != 0, "the flags of an earlier build were kept"
    assert "no flag" in run.stdout + run.stderr
    assert not launched.exists()


@pytest.mark.parametrize("command", ["nice -n 5 g++", "-m64", "/nonexistent/launcher g++"])
def test_what_is_no_compiler_in_cxx_leaves_the_operators_out(
    small_source: Path, build_cpp: Build, command: str
) -> None:
    run = build_cpp(CXX=command)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "the C++ library is left out, the package works without it: a C++20 compiler not found" in run.stderr


def test_a_compiler_that_lacks_what_the_sources_use_is_refused_with_what_it_says(
    small_source: Path, build_cpp: Build
) -> None:
    """As GCC 11, which has C++20 and not this function of GCC 12."""
    run = build_cpp(CXX="g++ -D__builtin_shufflevector=not_in_gcc_11")
    assert run.returncode == 0, run.stdout + run.stderr
    missing = unpacked_wheel(small_source) / "tfkd_fast" / "native" / "missing.json"
    reason = json.loads(missing.read_text())["the C++ library"]
    assert reason.startswith(f"a C++20 compiler not found (csrc/ needs GCC 12 or newer; {GXX} says ")
    assert "not_in_gcc_11" in reason
