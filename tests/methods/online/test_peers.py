"""Students that learn from each other: their losses in float64, written out, and what each of them sees."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.short_runs import train
from tests.methods.steps import BATCH, assert_teaches, random_step
from tfkd_fast.methods import Context, Method, find_method
from tfkd_fast.methods.base import Loss, StepBatch
from tfkd_fast.training.trainer import Trainer

STUDENTS = 3
EXACT = 1e-12


def build(name: str, **loss: float) -> Method:
    entry = find_method(name)
    settings = entry.settings.model_validate({"peers": {"count": STUDENTS}, "loss": loss})
    return entry.build(settings, Context(5, 12, 4, 0, torch.device("cpu"), lambda epoch: 1.0))


def step_of_peers(seed: int) -> tuple[Tensor, StepBatch]:
    """Of students that see the same images."""
    logits, batch = random_step(seed, STUDENTS)
    return logits, replace(batch, labels=batch.labels[:1].expand(STUDENTS, -1))


def kl(teacher: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(logits)) of one sample."""
    p = teacher.detach().softmax(-1)
    return (p * (p.log() - logits.log_softmax(-1))).sum()


def test_dml_is_cross_entropy_and_the_mean_divergence_from_the_others() -> None:
    logits, batch = step_of_peers(0)
    expected = []
    for own in range(STUDENTS):
        total = F.cross_entropy(logits[own], batch.labels[own])
        for other in {*range(STUDENTS)} - {own}:
            divergence = sum(kl(logits[other, row], logits[own, row]) for row in range(BATCH))
            total = total + 0.7 * divergence / BATCH / (STUDENTS - 1)
        expected.append(total)
    assert_teaches(build("dml", weight=0.7), logits, batch, torch.stack(expected), EXACT)


def test_kdcl_is_cross_entropy_and_the_divergence_from_the_smallest_logits() -> None:
    logits, batch = step_of_peers(1)
    expected = []
    for own in range(STUDENTS):
        total = F.cross_entropy(logits[own], batch.labels[own])
        for row, label in enumerate(batch.labels[own].tolist()):
            ensemble = [
                min(float(logits[k, row, c].detach() - logits[k, row, label].detach()) for k in range(STUDENTS))
                for c in range(logits.shape[-1])
            ]
            teacher = torch.tensor(ensemble, dtype=torch.float64)
            total = total + 0.7 * 2.5**2 * kl(teacher / 2.5, logits[own, row] / 2.5) / BATCH
        expected.append(total)
    assert_teaches(build("kdcl", weight=0.7, temperature=2.5), logits, batch, torch.stack(expected), EXACT)


def first_batch(name: str, out: Path) -> StepBatch:
    """What the students of a run see first."""
    seen: list[StepBatch] = []

    def watch(trainer: Trainer) -> None:
        method = trainer.parts.method
        of_method = method.loss

        def loss(logits: Tensor, batch: StepBatch) -> Loss:
            seen.append(batch)
            return of_method(logits, batch)

        method.loss = loss  # type: ignore[method-assign]

    train(out, name, {"epochs": 1}, watch=watch)
    return seen[0]


def test_students_of_kdcl_see_other_views_of_the_same_images(tmp_path: Path) -> None:
    batch = first_batch("kdcl", tmp_path / "kdcl")
    assert torch.equal(*batch.indices)
    assert torch.equal(*batch.labels)
    different = (batch.images[0] != batch.images[1]).flatten(1).any(1)
    assert different.float().mean() > 0.8  # few random crops are alike
    alike = first_batch("dml", tmp_path / "dml")
    assert torch.equal(*alike.images)
    assert torch.equal(alike.images[0], batch.images[0])
    first, second = (student.state_dict()["classifier.weight"] for student in alike.students)
    assert not torch.equal(first, second)
