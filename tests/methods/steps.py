"""Methods without an engine: how to build one, and a step to hand to it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods import Context, Method, find_method
from tfkd_fast.methods.base import StepBatch, TeacherFacts, TeacherOutputs, TrainingStep
from tfkd_fast.models import FeatureShapes

CLASSES, IMAGES, BATCH, EPOCHS = 5, 12, 7, 4
CPU = torch.device("cpu")
SHAPES = FeatureShapes(((8, 32, 32), (16, 16, 16)), 16)
"""Of the student's features."""


def build(name: str, teachers: tuple[TeacherFacts, ...] = (), **loss: Any) -> Method:
    """A method for a vgg8, with values of its `[loss]` table."""
    entry = find_method(name)
    context = Context(CLASSES, IMAGES, EPOCHS, 0, CPU, lambda epoch: 1.0, shapes=SHAPES, teachers=teachers)
    return entry.build(entry.settings.model_validate({"loss": loss}), context)


def random_step(seed: int, candidates: int = 1, teachers: int = 0) -> tuple[Tensor, StepBatch]:
    """Float64 logits (n,B,C), of which about half are right, and a batch of its own for each candidate."""
    generator = torch.Generator().manual_seed(seed)
    shape = (candidates, BATCH, CLASSES)
    labels = torch.randint(CLASSES, shape[:2], generator=generator)
    indices = torch.stack([torch.randperm(IMAGES, generator=generator)[:BATCH] for _ in range(candidates)])
    logits = 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    logits.scatter_add_(-1, labels.unsqueeze(-1), torch.full((*shape[:2], 1), 2.0, dtype=torch.float64))
    outputs = tuple(TeacherOutputs(3.0 * torch.randn(shape, generator=generator), None) for _ in range(teachers))
    return logits.requires_grad_(), StepBatch(labels, indices, teachers=outputs)


def assert_teaches(method: Method, logits: Tensor, batch: StepBatch, expected: Tensor, tolerance: float) -> None:
    """The loss (n,) and its gradient are those of `expected` (n,), and statistics, if any, count what is right."""
    loss = method.loss(logits, batch)
    losses, statistics = loss.total, loss.statistics
    assert losses.shape == expected.shape
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(gradient, wanted, rtol=tolerance, atol=tolerance / BATCH)
    if statistics is not None:
        assert statistics.correct.tolist() == (logits.argmax(-1) == batch.labels).sum(-1).tolist()


def descend(step: TrainingStep, gradients: Sequence[Tensor]) -> None:
    """`TrainingStep.descend` of a step without an engine."""
    ops.sgd_step(
        step.weights,
        gradients,
        step.momenta,
        rate=step.learning_rate,
        decay=step.weight_decay,
        factor=step.momentum,
        nesterov=step.nesterov,
    )


@contextmanager
def rollback(tensors: Sequence[Tensor]) -> Iterator[None]:
    """`TrainingStep.rollback` of a step that may change these."""
    before = [tensor.detach().clone() for tensor in tensors]
    yield
    with torch.no_grad():
        for tensor, saved in zip(tensors, before, strict=True):
            tensor.copy_(saved)
