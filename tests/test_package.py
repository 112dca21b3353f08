"""What the package says is public: what importing it loads, and what a user's type checker sees of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tfkd_fast

USER_CODE = """
from pathlib import Path

from torch import Tensor, nn
from torch.optim import AdamW

import tfkd_fast
from tfkd_fast import load_run, ops, train

summary = train("digits", Path("runs/a"), overrides={"epochs": 1})
top1: float = summary["test_top1"] + tfkd_fast.evaluate("runs/a")["test_top1"]
run = load_run("runs/a")
student: nn.Module = run.student()
classes: tuple[str, ...] = run.classes
criterion = tfkd_fast.Criterion("tfkd-mrs", num_classes=10, epochs=3, selection={"candidates": 2})
networks = [nn.Linear(4, 10) for _ in range(2)]
optimizers = [AdamW(network.parameters()) for network in networks]
steering = tfkd_fast.Steering(criterion, zip(networks, optimizers, strict=True))
for number, (network, optimizer) in steering.training():
    criterion(network(student(3)), student(4), candidate=number).backward()
    optimizer.step()
report = steering.end_epoch([student(5), student(6)], student(7))
survivors: tuple[int, ...] | None = report.survivors


def loss(logits: Tensor, labels: Tensor, table: Tensor) -> Tensor:
    return ops.soft_target_loss(logits, labels, table)


loss("no tensor", 3, None)
"""


def loaded_by(statement: str) -> set[str]:
    """The top-level packages, and the modules of this one, that a statement loads in a new process."""
    code = f"import json, sys\nold = {{*sys.modules}}\n{statement}\nprint(json.dumps([*sys.modules.keys() - old]))"
    modules = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    return {module if module.startswith("tfkd_fast") else module.partition(".")[0] for module in modules}


def test_the_package_itself_loads_nothing_else() -> None:
    loaded = loaded_by("import tfkd_fast")
    assert {name for name in loaded if name.startswith("tfkd_fast")} == {"tfkd_fast"}
    assert not loaded & {"torch", "numpy"}


def test_the_operators_load_torch_and_numpy_alone() -> None:
    loaded = loaded_by("from tfkd_fast import ops")
    assert {"torch", "numpy"} <= loaded
    assert not loaded & {"torchvision", "sklearn", "scipy", "matplotlib", "pydantic", "typer", "rich", "safetensors"}
    ours = {name for name in loaded if name.startswith("tfkd_fast.")}
    assert "tfkd_fast.ops" in ours
    outside = {name for name in ours if not name.startswith(("tfkd_fast.ops", "tfkd_fast.kernels", "tfkd_fast.native"))}
    assert outside <= {"tfkd_fast.errors", "tfkd_fast.randomness"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["trian"], ["train", "--help"], ["train", "--epoch"]])
def test_help_and_typing_mistakes_wait_for_nothing(arguments: list[str]) -> None:
    """All that takes long to import is imported by the command that needs it."""
    loaded = loaded_by(f"""
import contextlib, io
from tfkd_fast.cli import main
sys.argv = ["tfkd-fast", *{arguments!r}]
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    try:
        main()
    except SystemExit:
        pass
""")
    assert "typer" in loaded  # which imports pydantic to parse
    assert not loaded & {"torch", "numpy", "scipy", "matplotlib", "torchvision", "safetensors"}


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    for name in tfkd_fast.__all__:
        assert name in dir(tfkd_fast)
        assert getattr(tfkd_fast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        tfkd_fast.trian  # noqa: B018


def test_a_users_strict_type_check_sees_the_types(tmp_path: Path) -> None:
    """Outside of the source tree, so that the package is found as an installed one."""
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER_CODE)
    root = Path(tfkd_fast.__file__).parents[1]
    if (root / ".mypy_cache").exists():  # of the types of torch, which take half a minute; they depend on the settings
        shutil.copytree(root / ".mypy_cache", tmp_path / "cache")
    settings = ["--config-file", str(root / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, "user.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    complaints = [line for line in done.stdout.splitlines() if "error:" in line]
    last = len(USER_CODE.splitlines())
    assert len(complaints) == 3, done.stdout + done.stderr  # the three arguments of the wrong types, and nothing else
    assert all(line.startswith(f"user.py:{last}: error: Argument ") for line in complaints), done.stdout
