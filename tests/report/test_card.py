"""A model card is read by the Hub's own library, has the figures of the run, and its programs run."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from tests.support.runs import recipe
from tfkd_fast import api, load_run
from tfkd_fast.data import open_dataset
from tfkd_fast.events import StudentExamined
from tfkd_fast.models import ModelSettings
from tfkd_fast.report.card import model_card
from tfkd_fast.report.push import push
from tfkd_fast.report.run import RunRecord, read_run
from tfkd_fast.runs.stored import StoredRun
from tfkd_fast.runs.student import StudentHeader, read_student_header, student_bytes

NASTY = [
    "a|b",
    "<img src=x>",
    "`code`",
    "*bold* _it_",
    "yes",
    "null",
    "2026-01-01",
    "\u2028\x1b[31m",
    "\U0001f600",
    "é: #1",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    few = {"dataset": "digits", "per_class": 10, "batch_size": 32}
    api.train(recipe("label-smoothing", seed=7, data=few), folder)
    return folder


def parts(run_dir: Path) -> tuple[StoredRun, RunRecord, StudentHeader]:
    return load_run(run_dir), read_run(run_dir), read_student_header(run_dir / "student.safetensors")


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^(```+){language}\n(.*?)^\1$", card, re.MULTILINE | re.DOTALL)


def test_the_hub_reads_the_figures_of_the_run(finished: Path) -> None:
    cards = pytest.importorskip("huggingface_hub").ModelCard
    run, record, header = parts(finished)
    card = cards(model_card(run, record, header, "", "me/digits", "cc-by-4.0"), ignore_metadata_errors=False)
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-4.0", "tfkd-fast", "image-classification")
    assert {"label-smoothing", "vgg8", "knowledge-distillation"} <= set(data.tags)
    assert data.datasets is None
    assert data.model_name == "digits"
    figures = {(each.dataset_split, each.metric_type): 100 * each.metric_value for each in data.eval_results}
    assert run.summary is not None
    expected = {
        ("test", "accuracy"): run.summary["test_top1"],
        ("test", "accuracy_top5"): run.summary["test_top5"],
        ("held out of training", "accuracy"): run.summary["holdout_top1"],
    }
    assert figures == pytest.approx(expected, abs=1e-3)
    assert {each.task_type for each in data.eval_results} == {"image-classification"}


def test_names_of_any_characters_stay_names(finished: Path) -> None:
    cards = pytest.importorskip("huggingface_hub").ModelCard
    run, record, header = parts(finished)
    dataset = "hf/me/\U0001f600: {x}\n---"
    record = dataclasses.replace(record, start=record.start.model_copy(update={"dataset": dataset}))
    header = header.model_copy(update={"classes": tuple(NASTY)})
    text = model_card(run, record, header, 'x = "````"\n', "me/\u00e9", "unknown")
    data = cards(text, ignore_metadata_errors=False).data
    assert data.datasets == ["me/\U0001f600: {x}\\n---"]
    assert {each.dataset_type for each in data.eval_results} == {"hf/me/\U0001f600: {x}\\n---"}
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    classes = [line for line in rows if len(re.findall(r"(?<!\\)\|", line)) == 4]
    assert len(classes) == 2 + len(NASTY)  # heads, rule, classes
    assert "<img" not in text.replace("\\<img", "")
    assert "\x1b" not in text
    assert blocks(text, "toml") == [("`````", 'x = "````"\n')]


def test_accuracies_by_class_are_those_of_the_log(finished: Path) -> None:
    run, record, header = parts(finished)
    text = model_card(run, record, header, "", "./x", "mit")
    (test,) = [event for event in run.events if isinstance(event, StudentExamined)]
    rows = re.findall(r"^\| (\d) \| (\d+) \| ([\d.]+) \|$", text, re.MULTILINE)
    found = {int(label): (int(images), float(top1)) for label, images, top1 in rows}
    assert found == {
        label: (images, pytest.approx(top1, abs=0.006))
        for label, (images, top1) in enumerate(zip(test.class_images, test.class_top1, strict=True))
    }
    assert [float(top1) for _, _, top1 in rows] == sorted(float(top1) for _, _, top1 in rows)
    assert "Seed of the run: 7." in text
    assert "data.holdout = 0.1" in text


def test_its_programs_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(finished, tmp_path / "mine", say=lambda _: None)
    text = (tmp_path / "mine" / "README.md").read_text()
    with_us, without = (code for _, code in blocks(text, "python"))
    digit = open_dataset(load_run(finished).recipe.data).read_test().all_images()[0, 0].numpy()
    monkeypatch.chdir(tmp_path)
    Image.fromarray(digit).save("image.png")
    names: dict[str, Any] = {}
    exec(with_us, names)
    run = load_run(finished)
    pixels = torch.from_numpy(digit)[None, None]
    expected = run.classifier().probabilities(pixels)
    assert torch.equal(names["probabilities"], expected)
    monkeypatch.chdir("mine")
    exec(without, names)
    assert names["weights"].keys() == run.student().state_dict().keys()
    normalised = (pixels / 255 - names["mean"]) / names["std"]
    np.testing.assert_allclose(normalised, run.normalise(pixels), atol=1e-5)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_network_of_another_package_is_loaded_without_this_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    pytest.importorskip(package)
    name = {"torchvision": "squeezenet1_1", "timm": "test_resnet"}[package]
    run, record, header = parts(finished)
    channels = 3 if package == "torchvision" else 1
    shape = {"image_shape": (channels, 32, 32), "mean": (0.5,) * channels, "std": (0.25,) * channels}
    header = header.model_copy(update={"name": f"{package}/{name}", "width": 1.0} | shape)
    if package == "torchvision":
        network = models.get_model(name, weights=None, num_classes=10)
    else:
        network = __import__("timm").create_model(name, num_classes=10, in_chans=1)
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset(run.recipe.data)
    made = student_bytes(network, ModelSettings(name=header.name), dataset, 0.1)
    Path("student.safetensors").write_bytes(made)
    _, (_, without) = blocks(model_card(run, record, header, "", "./x", "mit"), "python")
    names: dict[str, Any] = {}
    exec(without, names)
    images = torch.rand(2, channels, 64, 64)
    assert torch.equal(names["network"](images), network.eval()(images))
