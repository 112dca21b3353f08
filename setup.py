"""Builds the compiled operators with CMake. What cannot be compiled here is left out, and the package works without it.

Everything else about the package is in pyproject.toml.
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "native"
OLDEST_TORCH = (2, 11)
# As CMake writes them: machine code for 8.0 and for 9.0, and code that a driver can translate for what comes later.
CUDA_ARCHITECTURES = os.environ.get("CUDAARCHS", "80-real;90")

Found = tuple[str | None, str]
"""A tool and an empty reason, or None and why it is missing."""


def find_torch() -> Distribution | None:
    """The torch of the environment that is installed into, also from within an isolated build; it is not imported."""
    environment = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    for torch in distributions(name="torch", path=[*environment, *sys.path]):
        version = re.match(r"(\d+)\.(\d+)", torch.version)
        if version and tuple(map(int, version.groups())) >= OLDEST_TORCH:
            return torch
    return None


def compiler_command() -> tuple[list[str], str | None, list[str]]:
    """CXX in its parts: what launches the compiler, its name, and its flags, as in "ccache g++ -m64"."""
    command = os.environ.get("CXX")
    if command is None or shutil.which(command):  # also a path with spaces
        return [], command, []
    words = shlex.split(command, posix=os.name == "posix")
    first_flag = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    *launcher, name = words[:first_flag] or [""]
    return launcher, name, words[first_flag:]


PROBE = """
#include <bit>
using Floats = float __attribute__((vector_size(16)));
struct Axes { int rows, columns; };
float probe(Axes axes, Floats x, float* out) {
  const auto [rows, columns] = axes;
  const auto fill = [&](int i) { out[i] = rows * columns; };
  fill(std::bit_cast<int>(x[0]));
  return __builtin_shufflevector(x, x, 1, 2, 3, 0)[0];
}
"""
"""What csrc/ uses and some compilers of C++20 lack: GCC before 12, and Clang at least up to 16."""


def find_compiler() -> str | None:
    """The path of a C++20 compiler that can compile csrc/: the one that CXX names, or else the system's."""
    return try_compilers()[0]


def try_compilers() -> Found:
    """The same, and what the first compiler that was refused says of the probe."""
    launcher, name, flags = compiler_command()
    refused = ""
    for compiler in filter(None, map(shutil.which, ["c++", "g++", "clang++"] if name is None else [name])):
        probe = [*launcher, compiler, "-std=c++20", "-fopenmp-simd", "-fsyntax-only", *flags, "-x", "c++", "-"]
        try:
            run = subprocess.run(probe, input=PROBE, capture_output=True, text=True)
        except OSError as error:  # the launcher is not there
            refused = refused or str(error)
            continue
        if run.returncode == 0:
            return str(Path(compiler).absolute()), ""  # as it is called: a link may be a launcher
        said = run.stderr.strip().splitlines() or [""]
        error = next((line for line in said if "error" in line), said[0])
        refused = refused or f"csrc/ needs GCC 12 or newer; {compiler} says {error}"
    return None, refused


def why_afresh(options: dict[str, object]) -> str | None:
    """Why the build folder cannot be configured with these options; None if it can, or if there is none.

    CMake refuses the folder of another source tree or generator, and forgets its options where a compiler changes.
    """
    try:
        lines = (BUILD / "CMakeCache.txt").read_text(errors="replace").splitlines()
    except OSError:
        return None
    entries = (re.fullmatch(r"([\w-]+):\w+=(.*)", line) for line in lines)
    cached = dict(entry.groups() for entry in entries if entry)
    for name, folder in (("CMAKE_HOME_DIRECTORY", ROOT), ("CMAKE_CACHEFILE_DIR", BUILD)):
        if Path(cached.get(name, "")).resolve() != folder.resolve():
            return f"it belongs to {cached.get(name, 'no source folder')}"
    if cached.get("CMAKE_GENERATOR") != "Ninja":
        return f"it was made for {cached.get('CMAKE_GENERATOR')}"
    for name in ("CMAKE_CXX_COMPILER", "CMAKE_CUDA_COMPILER", "CMAKE_CUDA_HOST_COMPILER"):
        if {name} <= options.keys() & cached.keys() and cached[name] != str(options[name]):
            return f"it was made with {cached[name]}"
    return None


def find_tool(name: str) -> str | None:
    """The command that pip installed for this interpreter, or else the system's."""
    return shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]))


def find_nvcc(compiler: str, torch: Distribution) -> Found:
    """A CUDA compiler that can build a library with this host compiler, for a torch that can load it."""
    if not Path(torch.locate_file("torch/lib/libtorch_cuda.so")).exists():
        return None, f"torch {torch.version} was built without CUDA"
    folders = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    names = [os.environ["CUDACXX"]] if "CUDACXX" in os.environ else ["nvcc", *(f"{f}/bin/nvcc" for f in folders if f)]
    nvcc = next(filter(None, map(shutil.which, names)), None)
    if nvcc is None:
        return None, "nvcc not found"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text("#include <bit>\n#include <cuda_runtime.h>\n__global__ void probe() {}\n")
        command = [
            nvcc,
            "-std=c++20",
            "-arch=sm_80",
            "-ccbin",
            compiler,
            "-Xcompiler=-fPIC",
            "-shared",
            "-cudart=static",
        ]
        probe = subprocess.run([*command, source, "-o", source.with_suffix(".so")], capture_output=True, text=True)
    said = (probe.stderr + probe.stdout).strip().splitlines() or [""]
    return (None, f"{nvcc} cannot compile C++20: {said[0]}") if probe.returncode else (nvcc, "")


def find_pybind11() -> Found:
    """The CMake folder of pybind11, where this Python has its headers."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return None, f"{header} not found"
    try:
        import pybind11
    except ImportError:
        return None, "pybind11 not found"
    return pybind11.get_cmake_dir(), ""


class BuildNative(build_ext):
    """Compiles csrc/ into tfkd_fast/native/, and records there what is left out, and why."""

    built: list[Path]

    def run(self) -> None:
        folder = (ROOT if self.inplace else Path(self.build_lib).resolve()) / "tfkd_fast" / "native"
        folder.mkdir(parents=True, exist_ok=True)
        self.built, missing = compile_all()
        for part, reason in missing.items():
            self.warn(f"{part} is left out, the package works without it: {reason}")
        for old in set(folder.iterdir()) - {folder / file.name for file in self.built}:
            old.unlink()
        for file in self.built:
            new = folder / f"{file.name}.new"
            shutil.copyfile(file, new)
            new.replace(folder / file.name)  # a running program keeps the library that it has mapped
        (folder / "missing.json").write_text(json.dumps(missing, indent=2) + "\n")

    def get_outputs(self) -> list[str]:
        return []  # a folder of package data, found by bdist_wheel in build_lib

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def compile_all() -> tuple[list[Path], dict[str, str]]:
    """The files that were built, and part -> why it is left out. An error of a compiler ends the installation."""
    compiler, refused = try_compilers()
    cmake, ninja, torch = find_tool("cmake"), find_tool("ninja"), find_torch()
    needed = {
        "a C++20 compiler": compiler,
        "cmake": cmake,
        "ninja": ninja,
        "the headers of torch >= 2.11": torch,
    }
    lacking = [name for name, found in needed.items() if found is None]
    if lacking:
        reason = f"{' and '.join(lacking)} not found{f' ({refused})' if refused else ''}"
        parts = ("the C++ library", "the CUDA library", "the build information", "the autograd extension")
        return [], dict.fromkeys(parts, reason)

    nvcc, no_cuda = find_nvcc(compiler, torch)
    pybind11, no_bindings = find_pybind11()
    launcher, _, flags = compiler_command()
    options = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_CXX_COMPILER": compiler,
        "CMAKE_CXX_COMPILER_LAUNCHER": ";".join(launcher) or os.environ.get("CMAKE_CXX_COMPILER_LAUNCHER", ""),
        "CMAKE_CXX_FLAGS": " ".join([*map(shlex.quote, flags), os.environ.get("CXXFLAGS", "")]).strip(),
        "TORCH_FOLDER": torch.locate_file("torch"),
        "BUILD_CUDA": "ON" if nvcc else "OFF",
        "BUILD_BINDINGS": "ON" if pybind11 else "OFF",
    }
    if nvcc:
        options |= {"CMAKE_CUDA_COMPILER": nvcc, "CMAKE_CUDA_HOST_COMPILER": compiler}
        options |= {"CMAKE_CUDA_ARCHITECTURES": CUDA_ARCHITECTURES}
    if pybind11:
        options |= {"pybind11_DIR": pybind11, "Python_EXECUTABLE": sys.executable}
    afresh = why_afresh(options)
    if afresh:
        print(f"{BUILD} is built afresh: {afresh}")
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.check_call(
        [cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", *(["--fresh"] if afresh else []), *definitions]
    )
    subprocess.check_call([cmake, "--build", BUILD])

    built, missing = [BUILD / "libtfkd_fast.so"], {}
    if nvcc:
        built += [BUILD / "libtfkd_fast_cuda.so", write_kernel_report()]
    else:
        missing["the CUDA library"] = no_cuda
    ending = sysconfig.get_config_var("EXT_SUFFIX")
    if pybind11:
        built.append(BUILD / f"build_info{ending}")
    else:
        missing["the build information"] = missing["the autograd extension"] = no_bindings
    # What it needs of torch has no stable interface: the package does without it under a torch that has another one.
    if pybind11 and subprocess.run([cmake, "--build", BUILD, "--target", "autograd"]).returncode == 0:
        built.append(BUILD / f"autograd{ending}")
    elif pybind11:
        missing["the autograd extension"] = f"it does not compile with torch {torch.version}"
    return built, missing


KERNEL = re.compile(
    r"""Compiling\ entry\ function\ '(?P<kernel>\w+)'\ for\ 'sm_(?P<architecture>\w+)'
    .*? (?P<stack_bytes>\d+)\ bytes\ stack\ frame,\ (?P<spill_store_bytes>\d+)\ bytes\ spill\ stores,
    \ (?P<spill_load_bytes>\d+)\ bytes\ spill\ loads
    .*? Used\ (?P<registers>\d+)\ registers""",
    re.DOTALL | re.VERBOSE,
)
"""What ptxas says about a kernel."""


def write_kernel_report() -> Path:
    """A table of what the CUDA kernels take, a row a kernel and architecture."""
    table = BUILD / "cuda_kernels.csv"
    columns = ["operator", *KERNEL.groupindex]
    with table.open("w", newline="") as file:
        rows = csv.DictWriter(file, columns)
        rows.writeheader()
        rows.writerows(kernels_of_reports())
    return table


def kernels_of_reports() -> Iterator[dict[str, str]]:
    for source in sorted(ROOT.glob("csrc/*/cuda.cu")):
        report = BUILD / "CMakeFiles" / "tfkd_fast_cuda.dir" / f"{source.relative_to(ROOT)}.o.ptxas"
        for kernel in KERNEL.finditer(report.read_text()):
            yield {"operator": source.parent.name, **kernel.groupdict()}


class AnyPythonWheel(bdist_wheel):
    """The operators depend on the platform, but on no Python version. (The build information does; it is optional.)

    Where nothing was compiled, the wheel depends on no platform either.
    """

    def run_command(self, command: str) -> None:
        super().run_command(command)
        if command == "build" and not self.get_finalized_command("build_ext").built:
            self.distribution.ext_modules = None
            self.root_is_pure = True

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


# tfkd_fast/kernels is a link to the folder. Where links are not checked out (git on Windows makes a text file of one),
# the package is mapped to the folder itself: the same wheel.
UNLINKED = [] if (ROOT / "tfkd_fast" / "kernels").is_dir() else ["tfkd_fast.kernels"]

setup(
    # A build dependency only of what compiles (see build_backend.py) and only where the environment has none: any
    # torch >= 2.11 serves, and a second copy is large.
    setup_requires=["torch>=2.11"] if "sdist" not in sys.argv and find_compiler() and not find_torch() else [],
    # The root, so that an editable installation is a path, which type checkers and editors follow.
    package_dir={"": ".", **dict.fromkeys(UNLINKED, "kernels")},
    packages=find_packages(include=["tfkd_fast*"]) + UNLINKED,
    package_data={
        "tfkd_fast": ["py.typed"],
        "tfkd_fast.recipes": ["*.toml", "policies/*.safetensors"],
        "tfkd_fast.recipes.studies": ["*.toml"],
        "tfkd_fast.report": ["*.html"],
        "tfkd_fast.search": ["*.html"],
        "tfkd_fast.study": ["*.html"],
    },
    # CMakeLists.txt knows the sources; here they only have to reach the source distribution.
    ext_modules=[
        Extension(
            "tfkd_fast.native.libtfkd_fast",
            sources=[],
            depends=[
                "CMakeLists.txt",
                *(str(f.relative_to(ROOT)) for f in sorted(ROOT.glob("csrc/**/*")) if f.is_file()),
            ],
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPythonWheel},
)
