"""The examples run as they are, learn, and do what they say."""

import importlib.util
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
MINIMAL, FIRST_RUN = EXAMPLES / "minimal.py", EXAMPLES / "first_run.ipynb"


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal", MINIMAL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_minimal_example_learns_and_moves_the_target(
    minimal: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chance is 10 %. The margin: a student that is right for nine images of ten has learned."""
    result = minimal.main()
    assert result["top1"] > 0.9
    taught = result["taught"]
    assert len(taught) == minimal.EPOCHS // minimal.INTERVAL
    assert set(taught) <= {minimal.NEUTRAL, *minimal.ARMS}
    assert len(set(taught)) > 1
    assert any(later < earlier for earlier, later in pairwise(taught))  # non-progressive
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(taught) + 2
    assert lines[-1].startswith(f"test accuracy {100 * result['top1']:.1f} %")


def test_the_bandit_of_the_minimal_example_finds_the_best_arm(minimal: ModuleType) -> None:
    bandit = minimal.Bandit()
    played = []
    for _ in range(40):
        arms = bandit.choose(1)
        bandit.learn(arms, [-((minimal.ARMS[arm] - 0.8) ** 2) for arm in arms])
        played += arms
    assert sorted(played[: len(minimal.ARMS)]) == list(range(len(minimal.ARMS)))
    best = minimal.ARMS.index(0.8)
    assert played[20:].count(best) == max(map(played[20:].count, range(len(minimal.ARMS))))


def test_the_minimal_example_needs_the_operators_and_nothing_else_of_the_package() -> None:
    code = f"import sys; sys.path.insert(0, {str(MINIMAL.parent)!r}); import minimal; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "tfkd_fast.ops" in loaded
    assert not {"tfkd_fast.api", "tfkd_fast.steering", "tfkd_fast.methods", "tfkd_fast.training"} & set(loaded)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells one after the other, with fewer epochs and images."""
    notebook = json.loads(FIRST_RUN.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"}
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code")
    small = {
        "EPOCHS = 8": "EPOCHS = 2",
        '{"width": 0.125}}': '{"width": 0.125}, "data": {"per_class": 20, "loader": "resident"}}',
    }
    for whole, part in small.items():
        assert whole in cells["train"]
        cells["train"] = cells["train"].replace(whole, part)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {}
    for name, code in cells.items():
        exec(compile(code, name, "exec"), names)
    assert "&lt;svg" in names["Report"]("runs/tfkd")._repr_html_()
    assert len(names["plt"].gca().lines) == 4
    printed = capsys.readouterr().out
    assert "from epoch 1 on, the true class is taught with 0.90" in printed
    assert f"label-smoothing  seed 1: {names['results']['label-smoothing', 1]['test_top1']:.1f} %" in printed
