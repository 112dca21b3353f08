"""Students as files: what a header may say, and that the weights are those of the network that it names."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.support.runs import few_images
from tfkd_fast import tensor_file
from tfkd_fast.errors import UserError
from tfkd_fast.models import ModelSettings, build_model, give
from tfkd_fast.runs.student import (
    STUDENT,
    StudentHeader,
    load_student,
    read_student,
    refuse_unsavable,
    save_student,
)

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


class Net(nn.Module):
    """A block that is used twice, what a subclass remembers, and a linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        block = nn.Conv2d(1, 1, 3, padding=1)
        self.blocks, self.head = nn.ModuleList([block, block]), nn.Linear(1024, num_classes)
        self.remember()

    def remember(self) -> None:
        """Of this one nothing."""
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.scale * x.flatten(1))


class Counts(Net):
    """Keeps a number that does not concern its logits."""

    def remember(self) -> None:
        super().remember()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x)


class Learns(Net):
    def remember(self) -> None:
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.scale += self.training
        return super().forward(x)


class DrawsOnce(Net):
    def remember(self) -> None:
        self.scale = torch.rand(1024)


class Merges(Net):
    """Adds a product that is trained to its weight in evaluation mode, as loralib does; the product begins at zero."""

    def remember(self) -> None:
        super().remember()
        self.product, self.merged = nn.Parameter(torch.zeros(10, 1)), False

    def train(self, mode: bool = True) -> "Merges":
        super().train(mode)
        if mode == self.merged:
            self.head.weight.data += -self.product if mode else self.product
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.merged else logits + x.flatten(1).sum(1, keepdim=True) * self.product.T


COMMON = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1))


class HasCommon(Net):
    """A part of it is the same in every network."""

    def remember(self) -> None:
        super().remember()
        self.common = COMMON.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.common(x))


class HasCommonStatistics(HasCommon):
    def remember(self) -> None:
        super().remember()
        self.common.requires_grad_(False)


class HasCommonConstants(HasCommon):
    """A part that is the same and that no training changes."""

    def remember(self) -> None:
        super().remember()
        self.common = COMMON[0].requires_grad_(False)


class SaysMore(Net):
    def get_extra_state(self) -> int:
        return 3

    def set_extra_state(self, state: int) -> None: ...


def by(factory: type[Net], seed: int) -> nn.Module:
    return build_model(ModelSettings(name=give(factory)), 10, 1, seed)


def test_parts_that_share_weights_are_saved_and_read(tmp_path: Path) -> None:
    network, settings = by(Net, 3).eval(), ModelSettings(name=give(Net))
    save_student(tmp_path / "student", network, settings, few_images(), holdout=0.0)
    _, again = read_student(tmp_path / "student")
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(again(images), network(images))


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (Net, None),
        (Counts, None),
        (Learns, r"computes with more than its state_dict\(\) holds, .* be a parameter or a persistent buffer"),
        (DrawsOnce, r"computes with more than its state_dict\(\) holds"),
        (Merges, r"computes with more than its state_dict\(\) holds, .* let train\(\) and eval\(\) leave the weights"),
        (
            HasCommon,
            r"every network .*:HasCommon has the same common.0.weight, so that .* copy all that it puts",
        ),
        (
            HasCommonStatistics,
            r"every network .* has the same common.1.running_mean, so that to train one",
        ),
        (HasCommonConstants, None),
        (SaysMore, r"has in its state_dict\(\) what is no tensor \(_extra_state\), and the file of a student holds"),
    ],
)
def test_what_the_file_of_a_student_would_not_hold_is_refused(factory: type[Net], said: str | None) -> None:
    trained, settings = by(factory, 3), ModelSettings(name=give(factory))
    trained.train()(torch.randn(4, 1, 32, 32))
    with pytest.raises(UserError, match=said) if said else nullcontext():
        refuse_unsavable(trained, lambda: by(factory, 4), settings, few_images())
