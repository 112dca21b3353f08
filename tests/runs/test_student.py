"""Students as files: what a header may say, and that the weights are those of the network that it names."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.support.runs import few_images
from tfkd_fast import tensor_file
from tfkd_fast.errors import UserError
from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.runs.student import STUDENT, StudentHeader, load_student, read_student, save_student

SETTINGS = ModelSettings(width=0.125)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_student(tmp_path / "student", build_model(SETTINGS, 10, 1, seed=3), SETTINGS, few_images(), holdout=0.25)
    return tmp_path / "student"


def test_a_student_is_read_as_it_was_saved(path: Path) -> None:
    header, network = read_student(path)
    dataset = few_images()
    assert header == StudentHeader(**dataset.identity.model_dump(), name="vgg8", width=0.125, holdout=0.25)
    assert header.model == SETTINGS
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(network(images), build_model(SETTINGS, 10, 1, seed=3).eval()(images))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"width": 1e9}, r"the student .* is damaged or of another kind \(width: .*less than or equal to 8"),
        ({"width": float("nan")}, r"of another kind \(width: "),
        ({"mean": [float("nan")]}, r"of another kind \(mean.0: .*finite number\): name the folder of a finished run"),
        ({"std": [0]}, r"of another kind \(std.0: .*greater than 0"),
        ({"mean": [0.1, 0.2]}, "mean and std must have one number for each channel"),
        ({"classes": []}, r"of another kind \(classes: "),
        ({"classes": ["0"] * 10}, "two classes have the same name"),
        ({"image_shape": [1, 32]}, r"of another kind \(image_shape"),
        ({"name": ["vgg8"]}, r"of another kind \(name: "),
        ({"name": "mine"}, r"has the network 'mine', which is none of vgg8, .*: use it in a program that adds it"),
        ({"name": "vgg13"}, "does not hold the weights of a vgg13 for 10 classes"),
        ({"width": 8}, "does not hold the weights of a vgg8 for 10 classes"),
        ({"classes": ["a", "b"]}, "does not hold the weights of a vgg8 for 2 classes"),
    ],
    ids=str,
)
def test_a_header_that_cannot_be_right_is_refused(path: Path, entries: dict[str, Any], said: str) -> None:
    header, weights = tensor_file.read(path, STUDENT)
    metadata = {STUDENT: json.dumps(header | entries)}  # NaN as it is, and without a checksum
    safetensors.torch.save_file(weights, path, metadata)
    with pytest.raises(UserError, match=said):
        read_student(path)


def test_a_folder_is_no_student(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder: name the folder of a finished run"):
        load_student(tmp_path, SETTINGS, 10, (1, 32, 32))
