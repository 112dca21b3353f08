"""The examples run as they are, learn, and do what they say."""

import importlib.util
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

MINIMAL = Path(__file__).parents[1] / "examples" / "minimal.py"


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
