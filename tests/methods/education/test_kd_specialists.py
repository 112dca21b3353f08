"""KD from specialists under one softmax: the loss in float64, written out, its trap, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.steps import BATCH, CLASSES, CPU, EPOCHS, IMAGES, SHAPES, assert_teaches, random_step
from tfkd_fast.errors import UserError
from tfkd_fast.methods import Context, find_method
from tfkd_fast.methods.base import StepBatch, TeacherFacts, TeacherOutputs
from tfkd_fast.methods.education.kd_specialists import SpecialistsKD
from tfkd_fast.runs.recipe import make_recipe

GROUPS = ((3, 0), (1, 4, 2))
"""As the teachers order them."""


def build(groups: tuple[tuple[int, ...], ...] = GROUPS, **tables: Any) -> SpecialistsKD:
    entry = find_method("kd-specialists")
    facts = tuple(TeacherFacts(f"run{i}", "vgg13", labels, SHAPES) for i, labels in enumerate(groups, start=1))
    names = tuple("abcde")
    context = Context(CLASSES, IMAGES, EPOCHS, 0, CPU, lambda epoch: 1.0, classes=names, shapes=SHAPES, teachers=facts)
    return SpecialistsKD(entry.settings.model_validate(tables), context)


def a_step(candidates: int = 1) -> tuple[Tensor, StepBatch]:
    logits, batch = random_step(0, candidates)
    generator = torch.Generator().manual_seed(1)
    outputs = [3.0 * torch.randn(candidates, BATCH, len(group), generator=generator) for group in GROUPS]
    return logits, replace(batch, teachers=tuple(TeacherOutputs(output, None) for output in outputs))


def formula(logits: Tensor, batch: StepBatch, temperature: float, alpha: float, *, swap: bool = False) -> Tensor:
    """(n,), image by image and class by class."""
    losses = []
    for n in range(len(logits)):
        total = torch.zeros((), dtype=torch.float64)
        for i in range(BATCH):
            label, says = int(batch.labels[n, i]), [0.0] * CLASSES
            for group, teacher in zip(GROUPS, batch.teachers, strict=True):
                for place, known in enumerate(group):
                    says[known] = float(teacher.logits[n, i, place])
            if swap:
                best = says.index(max(says))
                says[best], says[label] = says[label], says[best]
            p = (torch.tensor(says, dtype=torch.float64) / temperature).softmax(0)
            z = logits[n, i]
            soft = (p * (p.log() - (z / temperature).log_softmax(0))).sum()
            total = total + alpha * temperature**2 * soft - (1 - alpha) * z.log_softmax(0)[label]
        losses.append(total / BATCH)
    return torch.stack(losses)


@pytest.mark.parametrize("candidates", [1, 2])
def test_all_teachers_are_one_of_all_classes(candidates: int) -> None:
    logits, batch = a_step(candidates)
    method = build(loss={"temperature": 2.5, "alpha": 0.6})
    assert_teaches(method, logits, batch, formula(logits, batch, 2.5, 0.6), tolerance=1e-12)


def test_the_label_may_correct_them_together() -> None:
    logits, batch = a_step()
    method = build(loss={"temperature": 4.0, "alpha": 1.0}, teachers={"adjust": "swap"})
    assert_teaches(method, logits, batch, formula(logits, batch, 4.0, 1.0, swap=True), tolerance=1e-12)


def test_a_teacher_that_is_louder_drowns_the_others() -> None:
    """The trap: the same teacher, by its own softmax, and the student learns its classes for every image."""
    logits, batch = a_step()
    first, second = batch.teachers
    louder = replace(batch, teachers=(first, second._replace(logits=second.logits + 100.0)))
    method = build(loss={"alpha": 1.0})
    masses = [(method.teacher_logits(each) / 4.0).softmax(-1)[..., list(GROUPS[0])].sum(-1) for each in (batch, louder)]
    assert masses[0].mean() > 0.2
    assert masses[1].max() < 1e-6
    losses = [method.loss(logits, each).total.item() for each in (batch, louder)]
    assert abs(losses[1] - losses[0]) > 0.1


def test_temperature_and_alpha_are_those_of_education() -> None:
    loss, education = (make_recipe({"method": name}).options.loss for name in ("kd-specialists", "education"))
    assert (loss.temperature, loss.alpha) == (education.temperature, education.alpha) == (4.0, 0.7)


@pytest.mark.parametrize(
    ("groups", "tables", "sentence"),
    [
        ((GROUPS[0],), {}, "this method learns from 2 or more teachers, and 1 were named"),
        (((0, 1, 2), (2, 3, 4)), {}, "class 'c' is in teacher run1 and in teacher run2: no two groups may share"),
        (((0, 1), (3, 4)), {}, "class 'c' is in none of teacher run1, teacher run2: together they must have all"),
        (((0, 1, 2, 3), (4,)), {}, "teacher run2 has 1 of 5 classes: a group needs two or more"),
        (
            GROUPS,
            {"professor": {"epochs": 5}},
            "a professor refines a teacher of all classes, and those of this method",
        ),
    ],
)
def test_teachers_that_are_no_specialists_of_all_classes_together_are_refused(
    groups: tuple[tuple[int, ...], ...], tables: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        build(groups, **tables)
