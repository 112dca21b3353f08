"""Other people's programs as they are measured: what is missing is named, and a clone is called as it calls itself."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import peers
from tfkd_fast import throughput as bench
from tfkd_fast.device import Compute
from tfkd_fast.models import ModelSettings

COMPUTE = Compute(torch.device("cpu"), torch.float32)
LABELS = bench.Workload(COMPUTE, ModelSettings(width=0.125), batch_size=4, steps=2)
TAUGHT = bench.Workload(COMPUTE, ModelSettings(), 2, 2, "kd", ModelSettings(name="vgg13"))

CLONE = {
    "helper/__init__.py": "",
    "helper/loops.py": """
calls = []

def train_vanilla(epoch, train_loader, model, criterion, optimizer, opt):
    calls.append(("vanilla", [tuple(images.shape) for images, labels in train_loader]))
    print("Epoch: ...")

def train_distill(epoch, train_loader, module_list, criterion_list, optimizer, opt):
    student, teacher = module_list
    calls.append((student.name, teacher.name, opt.distill, opt.gamma, opt.alpha, len(criterion_list)))
    calls.append(sorted(int(n) for images, labels, numbers in train_loader for n in numbers))
""",
    "models.py": """
import torch

class Network(torch.nn.Linear):
    def __init__(self, name, num_classes):
        super().__init__(1, num_classes)
        self.name = name

model_dict = {name: (lambda num_classes, name=name: Network(name, num_classes)) for name in ("vgg8", "vgg13")}
""",
    "distiller_zoo.py": """
import torch

class DistillKL(torch.nn.Module):
    def __init__(self, T):
        super().__init__()
""",
}


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rows, missing = peers.measure(LABELS, 2)
    assert [row.variant.split(",")[0] for row in rows] == ["tfkd-fast", "by hand"]
    assert {name.split(",")[0].split()[0]: reason.split(":")[0].split(",")[0] for name, reason in missing.items()} == {
        "timm": "not installed",
        "Lightning": "not installed",
        "RepDistiller": "git clone https",
    }
    _, missing = peers.measure(LABELS, 2, tmp_path)
    assert missing["RepDistiller as shipped, fp32"].startswith(f"{tmp_path} is no clone of it: git clone ")


def test_a_clone_is_called_as_its_scripts_call_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in CLONE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("sys.path", [*sys.path])
    peers.repdistiller_epoch(TAUGHT, tmp_path)()
    without = bench.Workload(COMPUTE, ModelSettings(), 2, 2)
    peers.repdistiller_epoch(without, tmp_path)()
    loops, *_ = [
        sys.modules.pop(name) for name in ("helper.loops", "helper", "models", "distiller_zoo")
    ]  # common names
    assert loops.calls == [
        ("vgg8", "vgg13", "kd", 0.1, 0.9, 3),
        [0, 1, 2, 3],
        ("vanilla", [(2, 3, 32, 32), (2, 3, 32, 32)]),
    ]
    assert capsys.readouterr().out == ""
