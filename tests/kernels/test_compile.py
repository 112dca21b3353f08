"""The Triton kernels compile for each architecture, down to machine code, hold their numbers in registers, and compute
addresses that do not wrap around.

Triton's interpreter, which the other tests run them with, takes more than its compiler does. No GPU is needed: Triton
brings the assembler. It compiles in a process of its own, because in this one it interprets.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfkd_fast.ops import fused

ROOT = Path(__file__).parents[2]
KERNELS = {file.stem: ast.parse(file.read_text()) for file in sorted(ROOT.glob("kernels/[a-z]*.py"))}
FAMILIES = sorted(set(KERNELS) - {"common", "losses"})
ARCHITECTURES = {80, 90}
MOST_CLASSES = 1024  # of a row that is held in registers; a longer one may spill a few numbers
SMALL = ("augment.py",)  # whose products are of the sides of one image, which the operator limits

pytestmark = pytest.mark.skipif(fused.TRITON_MISSING is not None, reason=str(fused.TRITON_MISSING))


def compilations(families: list[str], cache: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}  # what is in a cache is not compiled
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.kernels.compile", *families]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def problems(compiled: list[dict[str, Any]]) -> list[str]:
    return [str(one) for one in compiled if "error" in one or one["stored"] or one["loaded"]]


def launched(module: str) -> set[tuple[str, str]]:
    """The kernels of a module that no kernel calls."""
    calls = {
        node.func.id for node in ast.walk(KERNELS[module]) if isinstance(node, ast.Call) and hasattr(node.func, "id")
    }
    others = {name for tree in KERNELS.values() for node in ast.walk(tree) for name in imported(node)}
    functions = [node for node in KERNELS[module].body if isinstance(node, ast.FunctionDef)]
    kernels = {node.name for node in functions if any("triton.jit" in ast.unparse(how) for how in node.decorator_list)}
    return {(module, name) for name in kernels - calls - others}


def imported(node: ast.AST) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []


def adds_up(family: str) -> bool:
    return any("add_partial_sums" in imported(node) for node in ast.walk(KERNELS[family]))


@pytest.mark.parametrize("losses", [True, False])
def test_every_kernel_compiles_without_a_spill(losses: bool, tmp_path: Path) -> None:
    """Two halves, for two processes; every kernel on each architecture."""
    families = [family for family in FAMILIES if adds_up(family) == losses]
    compiled = compilations(families, tmp_path)
    assert not problems([one for one in compiled if "error" in one or one["classes"] <= MOST_CLASSES])
    kernels = set().union(*(launched(module) for module in families + ["losses"] * losses))
    found = {(one["module"], one["kernel"], one["architecture"]) for one in compiled}
    assert found == {(*kernel, architecture) for kernel in kernels for architecture in ARCHITECTURES}
    assert all(one["registers"] > 0 for one in compiled)
    wraps = {place for one in compiled for place in one["narrow"] if not place.startswith(SMALL)}
    assert not wraps, f"products of sizes in 32 bits: {sorted(wraps)}"


def test_what_spills_or_wraps_around_or_does_not_compile_is_found(tmp_path: Path) -> None:
    fine, spills, fails, wraps = compilations(["self_check"], tmp_path)
    assert problems([fine, spills, fails, wraps]) == [str(spills), str(fails)]
    assert spills["registers"] == 32
    assert min(spills["stored"], spills["loaded"]) >= 4 * 16
    assert "Loop-carried variable number" in fails["error"]
    source = Path(__file__).with_name("compile.py").read_text().splitlines()
    (place,) = wraps["narrow"]
    assert source[int(place.rpartition(":")[2]) - 1].strip() == "first = row * rows"
    assert fine["narrow"] == spills["narrow"] == []
