"""The programs of docs/deploy.md run, and give what the student gives."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.data_files import arrays
from tests.support.runs import recipe
from tfkd_fast import api, load_run
from tfkd_fast.data import open_dataset
from tfkd_fast.runs.export import Inside, export_student

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
PYTHON, HUB, ONNX, WEIGHTS, TORCH, OPENVINO, EXECUTORCH = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def execute(program: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(program, "deploy.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits with its exports, and an image file."""
    place = tmp_path_factory.mktemp("page")
    run = recipe("ce", data={"dataset": "digits", "per_class": 20, "batch_size": 32})
    api.train(run, place / "runs" / "first")
    export_student(place / "runs" / "first", inside=Inside(uint8=True))
    Image.fromarray(open_dataset(run.data).read_test().image(3)[0].numpy()).save(place / "three.png")
    return place


@pytest.fixture
def names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names after the first program, in the folder of the run."""
    monkeypatch.chdir(folder)
    return execute(PYTHON, {})


def test_the_run_of_a_folder_is_read_as_one_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names = execute(HUB.replace("OWNER/NAME", "./handed-on"), {})
    assert names["run"].summary == load_run("runs/first").summary


def expected(names: dict[str, Any]) -> np.ndarray:
    run = load_run("runs/first")
    logits: np.ndarray = run.student()(run.normalise(names["pixels"])).detach().numpy()
    return logits


@pytest.mark.parametrize(
    ("program", "package"),
    [(ONNX, "onnxruntime"), (TORCH, "torch"), (OPENVINO, "openvino"), (EXECUTORCH, "executorch")],
    ids=["onnxruntime", "torch", "openvino", "executorch"],
)
def test_other_programs_give_the_logits_of_the_student(names: dict[str, Any], program: str, package: str) -> None:
    pytest.importorskip(package, reason=f"needs {package}: pip install 'tfkd-fast[{package}]'")
    found = execute(program, dict(names))
    np.testing.assert_allclose(torch.as_tensor(found["logits"]).detach(), expected(names), rtol=1e-4, atol=1e-4)
    assert found["name"] == str(expected(names).argmax())


def test_six_lines_load_weights_without_this_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", **arrays())
    data = {"dataset": "npz", "root": "data.npz", "holdout": 0, "batch_size": 3}
    api.train(
        recipe("ce", epochs=1, data=data, model={"name": "torchvision/squeezenet1_1", "width": 1.0}), "runs/photos"
    )
    assert len(list(filter(None, WEIGHTS.splitlines()))) == 6
    assert "tfkd_fast" not in WEIGHTS
    found = execute(WEIGHTS.replace("resnet18", "squeezenet1_1"), {})
    assert found["header"]["classes"] == ["ant", "bee", "cow"]
    pixels, run = torch.from_numpy(arrays()["test_images"]).permute(0, 3, 1, 2), load_run("runs/photos")
    logits = found["network"]((pixels / 255 - found["mean"]) / found["std"])
    torch.testing.assert_close(logits, run.student()(run.normalise(pixels)))
    assert json.loads(Path("runs/photos/summary.json").read_text())["test_images"] == len(pixels)
