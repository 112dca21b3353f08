"""Builds the compiled operators with CMake; where they cannot be compiled, the package installs as pure Python.

Everything else about the package is in pyproject.toml.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)


def find_torch() -> Distribution | None:
    """The torch of the environment that is installed into, also from within an isolated build; it is not imported."""
    environment = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    for torch in distributions(name="torch", path=[*environment, *sys.path]):
        version = re.match(r"(\d+)\.(\d+)", torch.version)
        if version and tuple(map(int, version.groups())) >= OLDEST_TORCH:
            return torch
    return None


def find_compiler() -> str | None:
    """A C++20 compiler: the one that CXX names, or else the system's."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    for compiler in filter(None, map(shutil.which, names)):
        probe = [compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
        if subprocess.run(probe, input=b"#include <bit>\n", capture_output=True).returncode == 0:
            return compiler
    return None


def find_tool(name: str) -> str | None:
    """The command that pip installed for this interpreter, or else the system's."""
    return shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]))


class BuildNative(build_ext):
    """Compiles csrc/ into tfkd_fast/native/libtfkd_fast.so, and records beside it how, or why not."""

    def run(self) -> None:
        folder = (ROOT if self.inplace else Path(self.build_lib).resolve()) / "tfkd_fast" / "native"
        folder.mkdir(parents=True, exist_ok=True)
        library, record = folder / "libtfkd_fast.so", folder / "build.json"

        needed = {
            "a C++20 compiler": find_compiler(),
            "cmake": find_tool("cmake"),
            "ninja": find_tool("ninja"),
            "the headers of torch >= 2.11": find_torch(),
        }
        missing = [name for name, found in needed.items() if found is None]
        if missing:
            reason = f"{' and '.join(missing)} not found when the package was installed"
            library.unlink(missing_ok=True)
            record.write_text(json.dumps({"reason": reason}, indent=2) + "\n")
            self.warn(f"the C++ operators are left out, the package works without them: {reason}")
            return
        built, facts = compile_library(*needed.values())
        shutil.copyfile(built, library.with_suffix(".new"))
        library.with_suffix(".new").replace(library)  # a running program keeps the library that it has mapped
        record.write_text(json.dumps(facts, indent=2) + "\n")

    def get_outputs(self) -> list[str]:
        return []  # a folder of package data, found by bdist_wheel in build_lib

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def compile_library(compiler: str, cmake: str, ninja: str, torch: Distribution) -> tuple[Path, dict[str, str]]:
    """The library, and the facts of its build. An error of the compiler ends the installation."""
    build = ROOT / "build" / "native"
    subprocess.check_call(
        [
            *(cmake, "-S", ROOT, "-B", build, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_CXX_COMPILER={compiler}",
            f"-DTORCH_FOLDER={torch.locate_file('torch')}",
        ]
    )
    subprocess.check_call([cmake, "--build", build])
    command = shlex.split(json.loads((build / "compile_commands.json").read_text())[0]["command"])
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    return build / "libtfkd_fast.so", {
        "compiler": version,
        "flags": " ".join(word for word in command if word.startswith(("-D", "-O", "-W", "-f", "-m", "-s"))),
        "torch": torch.version,
    }


class PlatformWheel(bdist_wheel):
    """The library depends on the platform, but on no Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    # A build dependency only where the environment has none: any torch >= 2.11 serves, and a second copy is large.
    setup_requires=["torch>=2.11"] if find_compiler() and not find_torch() else [],
    packages=[*find_packages(include=["tfkd_fast*"]), "tfkd_fast.kernels", "tfkd_fast.recipes"],
    package_dir={"tfkd_fast.kernels": "kernels", "tfkd_fast.recipes": "recipes"},
    package_data={"tfkd_fast.recipes": ["*.toml"], "tfkd_fast.report": ["*.html"]},
    # CMakeLists.txt knows the sources; here they only have to reach the source distribution.
    ext_modules=[
        Extension(
            "tfkd_fast.native.libtfkd_fast",
            sources=[],
            depends=["CMakeLists.txt", *(str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("csrc/*/*")))],
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
