"""The loss against the formula, written out sample by sample in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.methods.education.students import CLASSES, GROUPS, Build, build_student
from tfkd_fast.methods.base import Plan, StepBatch, TeacherOutputs

BATCH = 12
ONE = (tuple(range(CLASSES)),)
LAST = 19
"""Of 20 epochs: every teacher is listened to."""


def random_step(teachers: tuple[tuple[int, ...], ...], seed: int = 0) -> tuple[Tensor, StepBatch]:
    """Float64 logits (1,B,C), and a batch with every class in it."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(1, BATCH, CLASSES, generator=generator, dtype=torch.float64)
    labels = (torch.randperm(BATCH, generator=generator) % CLASSES).unsqueeze(0)
    outputs = [5.0 * torch.randn(1, BATCH, len(known), generator=generator) for known in teachers]
    batch = StepBatch(labels, labels, teachers=tuple(TeacherOutputs(output) for output in outputs))
    return logits.requires_grad_(), batch


def softmax(values: list[Tensor], temperature: float) -> list[Tensor]:
    powers = [(value / temperature).exp() for value in values]
    return [power / sum(powers) for power in powers]


def kl(teacher: list[Tensor], student: list[Tensor], temperature: float) -> Tensor:
    pairs = zip(softmax(teacher, temperature), softmax(student, temperature), strict=True)
    return temperature**2 * sum(p * (p / q).log() for p, q in pairs)


def heard(plan: Plan, batch: StepBatch) -> StepBatch:
    """As the engine hands it over: with the teachers that are wanted."""
    assert plan.teachers is not None
    return replace(batch, teachers=tuple(batch.teachers[number] for number in plan.teachers))


def own_teacher(batch: StepBatch, teachers: tuple[tuple[int, ...], ...], sample: int) -> tuple[list[int], list[Tensor]]:
    """The classes of the group of a sample, and what its teacher makes of them."""
    label = int(batch.labels[0, sample])
    group = next(list(group) for group in GROUPS if label in group)
    teacher = next(i for i, known in enumerate(teachers) if label in known)
    logits = batch.teachers[teacher].logits[0, sample].double()
    return group, [logits[teachers[teacher].index(c)] for c in group]


@pytest.mark.parametrize("alpha", [0.7, 0.2])
@pytest.mark.parametrize("teachers", [GROUPS, ONE])
def test_each_sample_learns_from_its_own_teacher_on_the_classes_of_its_group(
    build: Build, teachers: tuple[tuple[int, ...], ...], alpha: float
) -> None:
    groups = None if len(teachers) > 1 else [list(map(str, group)) for group in GROUPS]
    education = build(teachers, loss={"alpha": alpha, "temperature": 3.0}, grades={"groups": groups})
    education.begin_interval(LAST)
    logits, batch = random_step(teachers)
    loss = education.loss(logits, batch)
    losses, statistics = loss.total, loss.statistics
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(BATCH):
        z, label = logits[0, i], int(batch.labels[0, i])
        group, taught = own_teacher(batch, teachers, i)
        soft = kl(taught, [z[c] for c in group], 3.0)
        expected = expected + (alpha * soft - (1 - alpha) * softmax(list(z), 1.0)[label].log()) / BATCH
    # float64 throughout, but for teachers that are given in float32
    torch.testing.assert_close(losses, expected.unsqueeze(0), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)
    assert statistics.correct.tolist() == [(logits[0].argmax(-1) == batch.labels[0]).sum()]


@pytest.mark.parametrize("teachers", [GROUPS, ONE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_teacher_moves_no_logit_outside_of_its_group(
    build: Build, dtype: torch.dtype, teachers: tuple[tuple[int, ...], ...]
) -> None:
    groups = None if len(teachers) > 1 else [list(map(str, group)) for group in GROUPS]
    education = build(teachers, loss={"alpha": 1.0}, grades={"groups": groups})
    education.begin_interval(LAST)
    logits, batch = random_step(teachers)
    logits = logits.detach().to(dtype).requires_grad_()
    losses = education.loss(logits, batch).total
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    for i in range(BATCH):
        group, _ = own_teacher(batch, teachers, i)
        others = [c for c in range(CLASSES) if c not in group]
        assert gradient[0, i, others].tolist() == [0.0] * len(others)
        assert (gradient[0, i, group].abs() > 1e-6).all()


@pytest.mark.parametrize(("epoch", "replay"), [(0, True), (8, True), (8, False), (13, False)])
def test_an_early_grade_learns_from_the_teachers_of_its_classes_alone(build: Build, epoch: int, replay: bool) -> None:
    education = build(loss={"alpha": 1.0}, grades={"replay": replay})
    plan = education.begin_interval(epoch)
    taught = plan.labels
    assert taught is not None
    logits, batch = random_step(GROUPS)
    labels = torch.tensor(taught)[batch.labels % len(taught)]
    batch = replace(batch, labels=labels)
    losses = education.loss(logits, heard(plan, batch)).total
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(BATCH):
        group, says = own_teacher(batch, GROUPS, i)
        expected = expected + kl(says, [logits[0, i, c] for c in group], 4.0) / BATCH
    torch.testing.assert_close(losses[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", [-20.0, 3.0])
def test_the_level_of_a_specialists_logits_does_not_matter(build: Build, level: float) -> None:
    """They cannot be compared across groups: no softmax sees two groups of them."""
    education = build()
    education.begin_interval(LAST)
    logits, batch = random_step(GROUPS)
    first, *others = batch.teachers
    louder = replace(batch, teachers=(first._replace(logits=first.logits + level), *others))
    losses = [education.loss(logits, each).total for each in (batch, louder)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0.0)  # float32 roundings of the sum


def test_the_cross_entropy_of_the_authors_has_the_same_gradient(build: Build) -> None:
    """H(p,q) is KL(p||q) and the entropy of p."""
    education = build(loss={"alpha": 1.0})
    education.begin_interval(LAST)
    logits, batch = random_step(GROUPS)
    losses = education.loss(logits, batch).total
    entropy = torch.zeros((), dtype=torch.float64)
    cross_entropy = torch.zeros((), dtype=torch.float64)
    for i in range(BATCH):
        group, taught = own_teacher(batch, GROUPS, i)
        p, q = torch.stack(softmax(taught, 4.0)), torch.stack(softmax([logits[0, i, c] for c in group], 4.0))
        cross_entropy = cross_entropy - 16 * (p * q.log()).sum() / BATCH
        entropy = entropy - 16 * (p * p.log()).sum() / BATCH
    torch.testing.assert_close(losses[0], cross_entropy - entropy, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (losses, cross_entropy)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_a_promoted_student_keeps_to_what_its_last_head_says_for_some_epochs(build: Build) -> None:
    education = build(loss={"alpha": 0.0, "self_reference": 0.5, "self_reference_epochs": 2})
    student, images = build_student(), torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits, batch = random_step(GROUPS)
    for number, promotion in ((1, 8), (2, 13)):  # 40 % and 65 % of 20 epochs
        taught = sorted(c for group in GROUPS[:number] for c in group)
        head = education.adapters[number - 1]
        head.norm.running_mean.uniform_(-0.5, 0.5)  # in training mode it would not matter
        for epoch, weight in ((promotion, 0.5), (promotion + 1, 0.5), (promotion + 2, 0.0)):
            plan = education.begin_interval(epoch)
            before = {key: tensor.clone() for key, tensor in head.state_dict().items()}
            plan.network(student).train()(images)
            given = student.run_stages(images, 1 + number)[-1]
            remembered = head.eval()(given).detach().double()[:, taught]
            losses = education.loss(logits, heard(plan, batch)).total
            expected = torch.zeros((), dtype=torch.float64)
            for i in range(BATCH):
                z = logits[0, i]
                expected = expected - softmax(list(z), 1.0)[int(batch.labels[0, i])].log() / BATCH
                expected = expected + weight * kl(list(remembered[i]), list(z[taught]), 1.0) / BATCH
            # what is remembered is float32, and computed in another order of operations
            torch.testing.assert_close(losses[0], expected, rtol=1e-5, atol=1e-5)
            (gradient,) = torch.autograd.grad(losses.sum(), logits)
            (wanted,) = torch.autograd.grad(expected, logits)
            torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5 / BATCH)
            after = head.train().state_dict()
            assert all(torch.equal(after[key], tensor) for key, tensor in before.items()), "it trains no more"
