"""The command under DALI: killed, resumed, evaluated."""

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.command import command, run, wait_for
from tests.support.runs import without_clocks
from tfkd_fast.data import missing_loaders

if reason := missing_loaders()["dali"]:
    pytest.skip(f"the loader dali {reason}", allow_module_level=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of JPEG files of another size than images are trained with."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for part, count in (("train", 160), ("test", 20)):
        for i in range(count):
            file = root / part / ("dark", "bright")[i % 2] / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 160, (41, 50, 3), dtype=np.uint8) + np.uint8(90 * (i % 2))
            Image.fromarray(pixels).save(file)
    return root


def train(photos: Path, folder: Path) -> list[str | Path]:
    arguments = ["train", "--dataset", "folder", "--data-root", photos, "--method", "ce", "--loader", "dali"]
    arguments += ["--epochs", "5", "--device", "cpu", "--precision", "fp32", "--set", "model.width=0.125"]
    return [*arguments, "--out", folder]


def test_killed_and_resumed_under_dali_ends_with_the_same_student(photos: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(*train(photos, whole))
    process = subprocess.Popen(command(*train(photos, killed)), stdout=subprocess.DEVNULL)
    wait_for(killed / "checkpoints" / "epoch-00002.ckpt", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists()
    run("train", "--resume", killed)
    for name in ("student.safetensors", "best.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert without_clocks(killed) == without_clocks(whole)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["loader"] == "dali"
    figures = json.loads(run("eval", whole, "--device", "cpu", "--precision", "fp32").stdout)
    assert figures["test_nll"] == pytest.approx(summary["test_nll"], rel=1e-6)
