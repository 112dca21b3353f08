"""What can be compiled is compiled, loads and says how it was built; what cannot is left out and says why."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.wheel.builds import NO_CUDA, ROOT, build_wheel, needs_cpp, unpacked_wheel
from tfkd_fast.ops import native

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree, not an installation")


def run_in(folder: Path, code: str, *arguments: str, **environment: str) -> str:
    """What Python code prints that imports what is in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)} | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def test_without_a_compiler_the_package_is_pure_python(source: Path) -> None:
    reason = "a C++20 compiler not found"
    for environment in ({"PATH": "/nonexistent"}, {"CXX": "/nonexistent/c++"}):
        build = build_wheel(source, **environment)
        assert build.returncode == 0, build.stderr
        assert f"the C++ library is left out, the package works without it: {reason}" in build.stderr
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
shipped = (("tfkd_fast.recipes", "digits.toml"), ("tfkd_fast.recipes.studies", "cifar100.toml"))
recipes = all(files(package).joinpath(file).is_file() for package, file in shipped)
print(ops.__file__, recipes, cpp.state, cpp.reason, sep="\\n")

from tfkd_fast.cli import main
main()
"""
    where, recipes, state, why, *doctor = run_in(installed, code, "doctor", COLUMNS="400").splitlines()
    assert Path(where).is_relative_to(installed)
    assert (recipes, state) == ("True", "refused")
    assert why == f"the C++ library is not built: {reason} when the package was installed; fix that and reinstall"
    assert f"The slow operators serve (plain PyTorch), because {why}" in "\n".join(doctor)


@needs_cpp
def test_without_nvcc_and_pybind11_the_cpp_operators_are_built_or_stop_the_build(small_source: Path) -> None:
    (small_source / "pybind11.py").write_text("raise ImportError\n")
    build = build_wheel(small_source, PYTHONPATH=str(small_source), **NO_CUDA)
    assert build.returncode == 0, build.stdout + build.stderr
    folder = unpacked_wheel(small_source) / "tfkd_fast" / "native"
    assert {file.name for file in folder.iterdir()} == {"libtfkd_fast.so", "missing.json"}
    assert json.loads((folder / "missing.json").read_text()) == {
        "the CUDA library": "nvcc not found",
        "the build information": "pybind11 not found",
        "the autograd extension": "pybind11 not found",
    }

    (small_source / "csrc" / "empty" / "cpu.cpp").write_text("not C++\n")
    build = build_wheel(small_source, PYTHONPATH=str(small_source), **NO_CUDA)
    assert build.returncode != 0
    assert "cpu.cpp:1" in build.stdout + build.stderr


@needs_cpp
@pytest.mark.skipif(native.build_information() is None, reason=str(native.not_built("the build information")))
def test_an_extension_that_torch_refuses_is_left_out(small_source: Path) -> None:
    """Nodes of torch's autograd have no stable interface: a newer torch may not compile them."""
    build = build_wheel(small_source, **NO_CUDA)
    assert build.returncode == 0, build.stdout + build.stderr
    reason = f"it does not compile with torch {torch.__version__.partition('+')[0]}"
    assert f"the autograd extension is left out, the package works without it: {reason}" in build.stderr
    folder = unpacked_wheel(small_source) / "tfkd_fast" / "native"
    assert not list(folder.glob("autograd*"))
    code = "from tfkd_fast.ops import backends; print(backends.autograd_extension)"
    assert reason in run_in(folder.parents[1], code)


@needs_cpp
def test_the_built_library_loads_and_computes() -> None:
    assert str(native.FOLDER / "libtfkd_fast.so") in torch.ops.loaded_libraries
    labels = torch.zeros(1, dtype=torch.int64)
    loss, _ = torch.ops.tfkd_fast.soft_target_loss(torch.zeros(1, 2), labels, torch.eye(2), None, None, True, "mean")
    torch.testing.assert_close(loss, torch.tensor(2.0).log())


@pytest.mark.skipif(native.build_information() is None, reason=str(native.not_built("the build information")))
def test_the_build_information() -> None:
    build = native.build_information()
    assert build.compiler.split()[0] in ("GNU", "Clang")
    assert "-O3" in build.flags
    assert "-ffast-math" not in build.flags
    assert tuple(map(int, build.torch.split(".")[:2])) >= (2, 11)
    if build.torch == torch.__version__:
        assert native.load_autograd().missing == native.not_built("the autograd extension")
    assert build.stable_abi == "2.11"
    assert bool(build.cuda_compiler) == bool(build.cuda_architectures)
    assert bool(build.cuda_compiler) == (native.not_built("the CUDA library") is None)


# What the levels of the x86-64 ABI add to what PyTorch itself needs, as Linux names it.
V3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
V4 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@pytest.mark.skipif(native.build_information() is None, reason=str(native.not_built("the build information")))
def test_the_vector_level_is_that_of_the_processor() -> None:
    build = native.build_information()
    if not build.compiler.startswith("GNU"):
        pytest.skip("other compilers make one copy of each function")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), None)
    if flags is None:
        pytest.skip("needs Linux on x86-64")
    level = "default" if not flags >= V3 else "AVX2" if not flags >= V4 else "AVX-512"
    assert build.vector_level() == level


@pytest.mark.parametrize(
    ("torch_cuda", "driver", "reason"),
    [
        (None, (13, 0), "was built without CUDA: install one with CUDA"),
        ("13.0", None, "no NVIDIA driver was found"),
        ("12.8", (12, 8), "the NVIDIA driver is for CUDA 12.8, the library for 13.1.80: install a newer driver"),
        ("13.0", (13, 0), None),  # the same major version is enough
        ("13.0", (14, 2), None),
    ],
)
def test_why_the_cuda_library_cannot_serve(
    monkeypatch: pytest.MonkeyPatch, torch_cuda: str | None, driver: tuple[int, int] | None, reason: str | None
) -> None:
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(native, "driver_version", lambda: driver)
    found = native.why_no_cuda("13.1.80")
    assert found is None if reason is None else reason in str(found)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_driver_is_asked_for_its_version(tmp_path: Path) -> None:
    """A stand-in for the driver's library."""
    source, library = tmp_path / "driver.cpp", tmp_path / "libcuda.so.1"
    source.write_text('extern "C" int cuDriverGetVersion(int* version) { *version = 12080; return 0; }\n')
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", library], check=True)
    code = "from tfkd_fast.ops import native; print(native.driver_version())"
    assert run_in(ROOT, code, LD_LIBRARY_PATH=str(tmp_path)).strip() == "(12, 8)"
