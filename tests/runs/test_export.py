"""Exports: what other programs compute by them, what is in them, and what is not kept."""

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.special import softmax

from tests.support.command import refusal, run
from tests.support.data_files import arrays
from tests.support.runs import recipe
from tfkd_fast import api, load_run
from tfkd_fast.data import open_dataset
from tfkd_fast.data.images import ImageSet
from tfkd_fast.models import foreign

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(1024, num_classes)

    def forward(self, x):
        EXPORT
        return self.head(x.flatten(1))
"""

FEW = {"dataset": "digits", "per_class": 40, "batch_size": 32}


EMA = {"ema_decay": 0.8}
NO_EXPORTS = shutil.ignore_patterns("*.pt2", "*.onnx")


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a network of others, which is exported in less than a second, in a folder with its module."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "net.py").write_text(NETWORK.replace("EXPORT", "pass"))
    model = {"name": f"{folder / 'net.py'}:Net", "width": 1.0}
    api.train(recipe("ce", data=FEW, optimizer=EMA, model=model), folder / "linear")
    return folder / "linear"


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return open_dataset(recipe("ce", data=FEW).data).read_test()


def outputs(file: Path, images: torch.Tensor, name: str) -> np.ndarray:
    """Of the output of this name, in ONNX Runtime, whose input is named `images`."""
    session = onnxruntime.InferenceSession(file)
    assert session.get_inputs()[0].shape == ["batch", *images.shape[1:]]
    return session.run([name], {"images": images.numpy()})[0]


def top1(file: Path, images: ImageSet) -> float:
    return 100 * float((outputs(file, images.all_images(), "logits").argmax(1) == images.labels.numpy()).mean())


def test_pixels_are_classified_as_the_run_was_tested_also_in_8_bits(tmp_path: Path, digits: ImageSet) -> None:
    finished = tmp_path / "run"
    api.train(recipe("ce", data=FEW), finished)
    printed = run("export", finished, "--uint8", "--int8").stdout
    figures = json.loads(run("eval", finished, "--device", "cpu", "--precision", "fp32").stdout)
    exact, rough = finished / "student.onnx", finished / "student-int8.onnx"
    assert top1(exact, digits) == pytest.approx(figures["test_top1"], abs=1e-4)
    assert top1(rough, digits) == pytest.approx(figures["test_top1"], abs=5)
    assert rough.stat().st_size < 0.5 * exact.stat().st_size
    rows = {line.split()[1]: line.split() for line in printed.splitlines() if "│" in line}
    for file in (exact, rough):
        size, accuracy, milliseconds, speed = (cell.replace(",", "") for cell in rows[file.name][3::2])
        assert (float(size), float(accuracy)) == (round(file.stat().st_size / 1024), round(top1(file, digits), 2))
        assert float(milliseconds) > 0 < float(speed)
    loaded = torch.export.load(finished / "student.pt2", extra_files={"metadata.json": ""}).module()
    images = digits.all_images()[:50]
    with torch.no_grad():
        np.testing.assert_allclose(loaded(images), outputs(exact, images, "logits"), rtol=1e-4, atol=1e-4)


def test_files_say_what_they_are(linear: Path) -> None:
    extra = {"metadata.json": ""}
    run("export", linear, "--ema")
    torch.export.load(linear / "student-ema.pt2", extra_files=extra)
    session = onnxruntime.InferenceSession(linear / "student-ema.onnx")
    described = session.get_modelmeta().custom_metadata_map
    assert described == json.loads(extra["metadata.json"])
    stored = load_run(linear)
    assert stored.summary is not None
    assert tuple(json.loads(described["classes"])) == stored.classes
    assert json.loads(described["image_shape"]) == [1, 32, 32]
    assert json.loads(described["metrics"])["test_top1"] == stored.summary["ema_test_top1"]
    assert json.loads(described["temperature"]) == stored.summary["ema_holdout_temperature"]
    (mean,), (std,) = json.loads(described["mean"]), json.loads(described["std"])
    pixels = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
    np.testing.assert_allclose((pixels / 255 - mean) / std, stored.normalise(pixels), atol=1e-5)
    assert b"site-packages" not in (linear / "student-ema.onnx").read_bytes()


def test_probabilities_of_the_best_epoch(linear: Path, digits: ImageSet) -> None:
    """By numpy, from the logits of the network."""
    names = [Path(line).name for line in run("export", linear, "--best", "--softmax", "--temperature").stdout.split()]
    assert names == ["best.safetensors", "best.pt2", "best.onnx"]
    stored = load_run(linear)
    assert stored.summary is not None
    images = stored.normalise(digits.all_images()[:20])
    logits = stored.best()(images).detach().numpy().astype(np.float64)
    expected = softmax(logits / stored.summary["best_holdout_temperature"], axis=1)
    np.testing.assert_allclose(outputs(linear / "best.onnx", images, "probabilities"), expected, atol=1e-5)


def test_what_would_differ_or_cannot_be_traced_is_not_kept(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, folder = linear.parent / "net.py", tmp_path / "run"
    shutil.copytree(linear, folder, ignore=NO_EXPORTS)
    before = sorted(folder.iterdir())
    for text, sentence in (
        ("x = x * 1.01 if torch.compiler.is_exporting() else x", "would give other outputs than the student, by up to"),
        ("x = x if x.sum() > 0 else -x", f"torch.export cannot trace the network {net}:Net for batches of any size"),
    ):
        monkeypatch.setattr(foreign, "from_imports", {})
        net.write_text(NETWORK.replace("EXPORT", text))
        ended = run("export", folder, ok=False)
        assert ended.returncode == 2
        assert sentence in ended.stderr.splitlines()[-1]
        assert sorted(folder.iterdir()) == before
    net.write_text(NETWORK.replace("EXPORT", "pass"))
    monkeypatch.setattr(foreign, "from_imports", {})


def test_without_its_data_set_an_export_is_compared_on_random_pixels(linear: Path, tmp_path: Path) -> None:
    file, folder, net = tmp_path / "data.npz", tmp_path / "run", linear.parent / "net.py"
    np.savez(file, **arrays(channels=1))
    data = {"dataset": "npz", "root": str(file), "holdout": 0, "batch_size": 3}
    api.train(recipe("ce", epochs=1, data=data, model={"name": f"{net}:Net", "width": 1.0}), folder)
    file.unlink()
    assert "no temperature is known of this run" in refusal("export", folder, "--temperature")
    assert f"{folder} has no best epoch" in refusal("export", folder, "--best")
    assert str(file) in refusal("export", folder, "--data-root", file)
    ended = run("export", folder, "--int8", ok=False)
    note, sentence = ended.stderr.splitlines()
    assert note.startswith(f"note: the export of {folder} is compared with the student on random pixels, not on images")
    assert sentence.startswith("error: ")
    assert str(file) in sentence
    assert [Path(line).name for line in ended.stdout.split()][1:] == ["student.pt2", "student.onnx"]


def test_what_is_no_run_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    assert "is no run folder" in refusal("export", tmp_path / "nowhere", "--int8")
    (tmp_path / "file").touch()
    assert "is no run folder" in refusal("export", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_no_part_of_an_export(linear: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    folder = tmp_path / "run"
    shutil.copytree(linear, folder, ignore=NO_EXPORTS)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "student.safetensors").stat().st_size // 2, hard))
    try:
        message = refusal("export", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"cannot write {folder / 'student.pt2'}: File too large" in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
