"""What the authors' code makes of certain numbers, and those numbers.

`published.json` has, of each method, the loss that the published code gave for these inputs in float64, and of its
gradient in each input the length and the product with `waves(..., phase=8)`.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tfkd_fast.methods import Method, find_method
from tfkd_fast.methods.base import CompanionOutputs, Context, StepBatch, TeacherFacts, TeacherOutputs
from tfkd_fast.methods.one_teacher.features.ft import FT
from tfkd_fast.models import Features, FeatureShapes

PUBLISHED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "published.json").read_text())
LABELS = torch.tensor([[0, 3, 1, 4, 2, 3, 0, 1]])
BATCH, CLASSES = LABELS.shape[1], 5
STUDENT = FeatureShapes(((4, 8, 8), (6, 8, 8), (8, 4, 4), (8, 2, 2)), 8)
TEACHER = FeatureShapes(((4, 8, 8), (10, 4, 4), (12, 4, 4), (12, 2, 2)), 12)
CPU = torch.device("cpu")


def waves(*shape: int, phase: int) -> Tensor:
    """Float64 numbers between -1 and 1 that any program can make."""
    count = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.7 * count**1.1 + 1.9 * phase).reshape(shape)


def fill(module: nn.Module, phase: int = 7) -> nn.Module:
    """Layers whose weights are waves by their shapes, without biases, in float64."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data = 0.5 * waves(*parameter.shape, phase=phase)
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return module.double()


def build_nothing(seed: int) -> nn.Module:
    raise AssertionError("a method builds another network that was not expected to")


def build(
    name: str,
    student: FeatureShapes = STUDENT,
    teacher: FeatureShapes = TEACHER,
    build_student: Callable[[int], nn.Module] = build_nothing,
    **tables: Any,
) -> Method:
    """A method by its name as a recipe would have it, in its last epoch."""
    entry = find_method(name)
    classifier = fill(nn.Linear(teacher.pooled, CLASSES)).float().requires_grad_(False)  # as adapters give float32
    facts = TeacherFacts("a", "vgg13", tuple(range(CLASSES)), teacher, classifier=classifier)
    context = Context(
        CLASSES,
        40,
        24,
        0,
        CPU,
        lambda epoch: 1.0,
        shapes=student,
        teachers=(facts,),
        batch_size=BATCH,
        build_student=build_student,
    )
    method = entry.build(entry.settings.model_validate(entry.preset | tables), context)
    method.begin_interval(23)
    if isinstance(method, FT):
        fill(method.paraphraser)
    return method


def outputs() -> tuple[dict[str, Tensor], StepBatch]:
    """The tensors with gradient by their names in `published.json`, and a batch of them."""
    logits, again = (2 * waves(1, BATCH, CLASSES, phase=phase) for phase in (1, 3))
    leaves = {"logits": logits.requires_grad_(), "again": again.requires_grad_()}
    indices = torch.arange(BATCH).unsqueeze(0)
    images = torch.zeros(1, BATCH, 1, 1, 1)
    batch = StepBatch(
        LABELS,
        indices,
        teachers=(TeacherOutputs(3 * waves(1, BATCH, CLASSES, phase=2)),),
        companions=CompanionOutputs(leaves["again"], LABELS, indices, images=images),
        teach=lambda images: (TeacherOutputs(3 * waves(1, BATCH, CLASSES, phase=4)),),
    )
    return leaves, batch


def features_of(shapes: FeatureShapes, phase: int, pooled: int) -> Features:
    """Maps whose waves have the phases from `phase` on, and pooled features of another."""
    before = [waves(1, BATCH, *shape, phase=phase + stage) for stage, shape in enumerate(shapes.maps)]
    return Features(before, [maps.relu() for maps in before], waves(1, BATCH, shapes.pooled, phase=pooled))


def with_features(
    leaves: dict[str, Tensor], batch: StepBatch, *, alike: bool = False, student: FeatureShapes = STUDENT
) -> tuple[list[Tensor], StepBatch]:
    """The maps of the student before ReLU, with gradient, and the batch with them; the pooled features are a leaf, too.

    `alike` gives the teacher the student's shapes.
    """
    given = features_of(student, 10, 5)
    maps = [each.requires_grad_() for each in given.before_relu]
    leaves["pooled"] = given.pooled.requires_grad_()
    own = Features(maps, [each.relu() for each in maps], leaves["pooled"])
    other = features_of(STUDENT, 30, 6) if alike else features_of(TEACHER, 20, 6)
    teacher = batch.teachers[0]._replace(features=other)
    return maps, replace(batch, features=own, teachers=(teacher,))


def figures(gradient: Tensor) -> list[float]:
    """The two numbers of a gradient that are kept."""
    flat = gradient.flatten()
    return [float(flat.norm()), float(flat @ waves(len(flat), phase=8))]


def entropies(logits: Tensor) -> Tensor:
    """The entropy of softmax(logits), by which a cross-entropy with it is larger than the divergence from it."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def assert_published(loss: Tensor, leaves: dict[str, list[Tensor]], expected: dict[str, Any], value: float) -> None:
    """Within 1e-6: one-hot labels, factors, and what an adapter gives are float32."""
    assert float(loss.detach()) == pytest.approx(value, rel=1e-6)
    for leaf, wanted in expected.items():
        if leaf == "value":
            continue
        gradients = torch.autograd.grad(loss.sum(), leaves[leaf], retain_graph=True, allow_unused=True)
        pairs = zip(gradients, leaves[leaf], strict=True)
        flat = torch.cat([(torch.zeros_like(x) if each is None else each).flatten() for each, x in pairs])
        length = max(wanted[0], 1.0 / BATCH)
        assert figures(flat) == pytest.approx(wanted, rel=1e-6, abs=1e-6 * length)
