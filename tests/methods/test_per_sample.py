"""The loss of a batch is the mean of those of its parts for methods that say so, and for no others."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods import published, steps
from tfkd_fast.data import Batch
from tfkd_fast.methods import METHODS, Method
from tfkd_fast.methods.base import CompanionOutputs, Interval, Material, StepBatch, TeacherFacts, TeacherOutputs
from tfkd_fast.methods.one_teacher.features.ft import FT

PARTS = 3
OF_ONE_TEACHER = [name for name in published.PUBLISHED if name in METHODS and METHODS[name].needs().teachers.fewest]
OTHERS: dict[str, dict[str, Any]] = {
    "confidence-penalty": {},
    "ols": {},
    "tf-kd-reg": {},
    "zipf": {"rank": "logits"},
    "ps-kd": {},
    "cs-kd": {},
    "kd-average": {},
    "kd-entropy": {},
    "ca-mkd": {"feature_weight": 0.0},
}
"""Without a teacher, and with several; their `[loss]` tables."""


def part(batch: StepBatch, number: int) -> StepBatch:
    """Every third image of a batch."""

    def own(tensor: Tensor) -> Tensor:
        return tensor[:, number::PARTS]

    def of_teachers(outputs: tuple[TeacherOutputs, ...]) -> tuple[TeacherOutputs, ...]:
        parts = [(own(each.logits), each.features and each.features.map(own)) for each in outputs]
        return tuple(TeacherOutputs(*each) for each in parts)

    companions, teach = batch.companions, batch.teach
    return replace(
        batch,
        labels=own(batch.labels),
        indices=own(batch.indices),
        features=batch.features and batch.features.map(own),
        teachers=of_teachers(batch.teachers),
        companions=companions and companions._replace(logits=own(companions.logits), labels=own(companions.labels)),
        teach=lambda images: of_teachers(teach(images)),
    )


def counts_each_image(build: Callable[[], Method], logits: Tensor, batch: StepBatch, leaves: list[Tensor]) -> bool:
    """Whether loss and gradients are the means of those of the parts, to the precision of what is float32 in them."""
    method, total = build(), torch.zeros(())
    adapters = list(method.adapters.eval().parameters()) if method.adapters else []
    whole = method.loss(logits, batch).total.sum()
    wanted = torch.autograd.grad(whole, [*leaves, *adapters], retain_graph=True, allow_unused=True)
    method = build()
    adapters = list(method.adapters.eval().parameters()) if method.adapters else []
    for number in range(PARTS):
        own = part(batch, number)
        total = total + method.loss(logits[:, number::PARTS], own).total.sum() * own.labels.shape[1] / logits.shape[1]
    found = torch.autograd.grad(total, [*leaves, *adapters], retain_graph=True, allow_unused=True)
    pairs = [(whole, total), *((a, b) for a, b in zip(wanted, found, strict=True) if a is not None and b is not None)]
    return all(torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-7) for a, b in pairs)


@pytest.mark.parametrize("name", OF_ONE_TEACHER)
def test_methods_of_one_teacher(name: str) -> None:
    alike = name == "fsp"
    leaves, batch = published.outputs()
    maps, batch = published.with_features(leaves, batch, alike=alike)

    def build() -> Method:
        method = published.build(name, teacher=published.STUDENT if alike else published.TEACHER)
        if METHODS[name].needs().material and not isinstance(method, FT):
            images = Batch(torch.zeros(published.BATCH, 1, 1, 1), published.LABELS[0], batch.indices[0])
            method.prepare(Material(lambda epoch: [images], None, lambda images: batch.teachers))
        if method.adapters is not None:
            published.fill(method.adapters)
        if name in ("ab", "fsp"):
            method.resume_interval(Interval(0, 1, 1))
        return method

    given = [leaves["logits"], leaves["pooled"], *maps]
    assert counts_each_image(build, leaves["logits"], batch, given) == build().per_sample


@pytest.mark.parametrize("name", OTHERS)
def test_other_methods(name: str) -> None:
    teachers = METHODS[name].needs().teachers.fewest
    logits, batch = steps.random_step(0, teachers=teachers)
    again = CompanionOutputs(2 * logits.detach().flip(1), batch.labels, batch.indices)
    facts = TeacherFacts("a", "vgg13", tuple(range(steps.CLASSES)), steps.SHAPES)

    def build() -> Method:
        return steps.build(name, (facts,) * teachers, **OTHERS[name])

    assert counts_each_image(build, logits, replace(batch, companions=again), [logits])
    assert build().per_sample
