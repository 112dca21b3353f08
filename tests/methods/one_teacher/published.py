"""What the authors' code makes of certain numbers, and those numbers.

`published.json` has, of each method, the loss that the published code gave for these inputs in float64, and of its
gradient in each input the length and the product with `waves(..., phase=8)`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfkd_fast.methods import Method, find_method
from tfkd_fast.methods.base import CompanionOutputs, Context, StepBatch, TeacherFacts, TeacherOutputs
from tfkd_fast.models import FeatureShapes

PUBLISHED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "published.json").read_text())
LABELS = torch.tensor([[0, 3, 1, 4, 2, 3, 0, 1]])
BATCH, CLASSES = LABELS.shape[1], 5
CPU = torch.device("cpu")


def waves(*shape: int, phase: int) -> Tensor:
    """Float64 numbers between -1 and 1 that any program can make."""
    count = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.7 * count**1.1 + 1.9 * phase).reshape(shape)


def build(name: str, student: FeatureShapes, teacher: FeatureShapes, **tables: Any) -> Method:
    """A method by its name as a recipe would have it, in its last epoch."""
    entry = find_method(name)
    context = Context(
        CLASSES,
        40,
        24,
        0,
        CPU,
        lambda epoch: 1.0,
        shapes=student,
        teachers=(TeacherFacts("a", "vgg13", tuple(range(CLASSES)), teacher),),
        batch_size=BATCH,
    )
    method = entry.build(entry.settings.model_validate(entry.preset | tables), context)
    method.begin_interval(23)
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


def figures(gradient: Tensor) -> list[float]:
    """The two numbers of a gradient that are kept."""
    flat = gradient.flatten()
    return [float(flat.norm()), float(flat @ waves(len(flat), phase=8))]
