"""The Triton kernels compile for each architecture, down to machine code, and hold their numbers in registers.

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
ARCHITECTURES = [80, 90]
MOST_CLASSES = 1024  # of a row that is held in registers; a longer one may spill a few numbers

pytestmark = pytest.mark.skipif(fused.TRITON_MISSING is not None, reason=str(fused.TRITON_MISSING))


def compilations(family: str, architectures: list[int], cache: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}  # what is in a cache is not compiled
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, Path(__file__).with_name("compile.py"), family, *map(str, architectures)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
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


@pytest.mark.parametrize("family", sorted(set(KERNELS) - {"common", "losses"}))
def test_every_kernel_compiles_without_a_spill(family: str, tmp_path: Path) -> None:
    compiled = compilations(family, ARCHITECTURES, tmp_path)
    assert not problems([one for one in compiled if "error" in one or one["classes"] <= MOST_CLASSES])
    adds_up = any("add_partial_sums" in imported(node) for node in ast.walk(KERNELS[family]))
    expected = launched(family) | (launched("losses") if adds_up else set())
    for architecture in ARCHITECTURES:
        of_it = [one for one in compiled if one["architecture"] == architecture]
        assert {(one["module"], one["kernel"]) for one in of_it} == expected
    assert all(one["registers"] > 0 for one in compiled)


def test_what_spills_or_does_not_compile_is_found(tmp_path: Path) -> None:
    fine, spills, fails = compilations("self_check", [80], tmp_path)
    assert problems([fine, spills, fails]) == [str(spills), str(fails)]
    assert spills["registers"] == 32
    assert min(spills["stored"], spills["loaded"]) >= 4 * 16
    assert "Loop-carried variable number" in fails["error"]
