"""Methods that learn from the logits of teachers: their losses in float64, written out, and what they keep."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.methods import Context, Method, find_method
from tfkd_fast.methods.base import StepBatch, TeacherFacts, TeacherOutputs
from tfkd_fast.models import FeatureShapes
from tfkd_fast.runs.recipe import make_recipe

CLASSES, BATCH, EPOCHS = 6, 9, 24
NAMES = ["kd", "dkd", "kd-average", "kd-entropy", "ca-mkd"]
EVERY = [*NAMES, "wsld", "dist", "ctkd", "nkd", "kd-ls", "dkd-ls"]
"""Those whose losses are in tests/methods/one_teacher/test_published.py are the last ones."""
TEMPERATURE = 2.5
NO_SHAPES = FeatureShapes((), 0)


def build(name: str, *, labels: tuple[int, ...] = tuple(range(CLASSES)), **loss: float) -> Method:
    entry = find_method(name)
    teachers = (TeacherFacts("some-run", "vgg13", labels, NO_SHAPES),) * teachers_of(name)
    context = Context(CLASSES, 50, EPOCHS, 0, torch.device("cpu"), lambda epoch: 1.0, teachers=teachers)
    logits_alone = {"feature_weight": 0.0} if name == "ca-mkd" else {}
    tables = {"loss": entry.preset.get("loss", {}) | logits_alone | loss}
    return entry.build(entry.settings.model_validate(tables), context)


def teachers_of(name: str) -> int:
    """How many a method has here."""
    return LOSSES[name][0] if name in LOSSES else 1


def random_step(teachers: int, candidates: int, *, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, StepBatch]:
    """Float64 logits (n,B,C), and float32 ones of teachers for the same images."""
    generator = torch.Generator().manual_seed(seed)
    shape = (candidates, BATCH, CLASSES)
    logits = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    outputs = tuple(TeacherOutputs(scale * torch.randn(shape, generator=generator), None) for _ in range(teachers))
    labels = torch.randint(CLASSES, (candidates, BATCH), generator=generator)
    return logits, StepBatch(labels, torch.arange(BATCH).expand(candidates, -1), teachers=outputs)


def softmax(logits: Tensor) -> Tensor:
    """Of (B,C), as it is defined."""
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """(B,), of distributions without zeros."""
    return (teacher * (teacher / student).log()).sum(-1)


def without(probabilities: Tensor, labels: Tensor) -> Tensor:
    """(B,C-1): the distribution over the classes that are not the label."""
    others = [torch.cat([row[:label], row[label + 1 :]]) for row, label in zip(probabilities, labels, strict=True)]
    return torch.stack([row / row.sum() for row in others])


def decoupled(logits: Tensor, teachers: list[Tensor], labels: Tensor) -> Tensor:
    """Of one candidate, with alpha 0.7 and beta 3."""
    p, q = softmax(logits / TEMPERATURE), softmax(teachers[0] / TEMPERATURE)
    p_label, q_label = (each[torch.arange(BATCH), labels] for each in (p, q))
    target = kl(torch.stack([q_label, 1 - q_label], -1), torch.stack([p_label, 1 - p_label], -1))
    non_target = kl(without(q, labels), without(p, labels))
    return 0.4 * F.cross_entropy(logits, labels) + TEMPERATURE**2 * (0.7 * target + 3 * non_target).mean()


def averaged(weights_of: Callable[[list[Tensor], Tensor], list[Tensor]]) -> Callable[..., Tensor]:
    """By the weight (B,) of each teacher."""

    def loss(logits: Tensor, teachers: list[Tensor], labels: Tensor) -> Tensor:
        p, total = softmax(logits / TEMPERATURE), 0.4 * F.cross_entropy(logits, labels)
        for weight, teacher in zip(weights_of(teachers, labels), teachers, strict=True):
            total = total + 0.7 * TEMPERATURE**2 * (weight * kl(softmax(teacher / TEMPERATURE), p)).mean()
        return total

    return loss


def by_entropy(teachers: list[Tensor], labels: Tensor) -> list[Tensor]:
    entropies = [-(softmax(t) * softmax(t).log()).sum(-1) for t in teachers]
    return [(1 - entropy / sum(entropies)) / (len(teachers) - 1) for entropy in entropies]


def by_confidence(teachers: list[Tensor], labels: Tensor) -> list[Tensor]:
    errors = [F.cross_entropy(t, labels, reduction="none").exp() for t in teachers]
    return [(1 - error / sum(errors)) / (len(teachers) - 1) for error in errors]


AVERAGE = {"temperature": TEMPERATURE, "ce_weight": 0.4, "kd_weight": 0.7}
LOSSES: dict[str, tuple[int, dict[str, float], Callable[..., Tensor]]] = {  # teachers, settings, formula
    "kd": (
        1,
        {"temperature": TEMPERATURE, "alpha": 0.6},
        lambda z, t, y: (
            0.4 * F.cross_entropy(z, y)
            + 0.6 * TEMPERATURE**2 * kl(softmax(t[0] / TEMPERATURE), softmax(z / TEMPERATURE)).mean()
        ),
    ),
    "dkd": (1, {"temperature": TEMPERATURE, "ce_weight": 0.4, "alpha": 0.7, "beta": 3.0, "warmup": 0.0}, decoupled),
    "kd-average": (3, AVERAGE, averaged(lambda teachers, _: [torch.tensor(1 / len(teachers))] * len(teachers))),
    "kd-entropy": (3, AVERAGE, averaged(by_entropy)),
    "ca-mkd": (3, AVERAGE, averaged(by_confidence)),
}


@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_those_of_the_formula(name: str, candidates: int) -> None:
    teachers, settings, formula = LOSSES[name]
    method = build(name, **settings)
    method.begin_interval(0)
    logits, batch = random_step(teachers, candidates)
    loss = method.loss(logits, batch)
    losses, statistics = loss.total, loss.statistics
    expected = torch.stack(
        [
            formula(logits[n], [teacher.logits[n].double() for teacher in batch.teachers], batch.labels[n])
            for n in range(candidates)
        ]
    )
    # What is worked out of the float32 logits of teachers is float32: a few roundings of 6e-8 in a loss of order 1.
    close = {"rtol": 1e-12, "atol": 1e-12} if name == "kd" else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(losses, expected, **close)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(gradient, wanted, rtol=close["rtol"], atol=close["atol"] / BATCH)
    assert statistics.correct.tolist() == (logits.argmax(-1) == batch.labels).sum(-1).tolist()


@pytest.mark.parametrize("name", EVERY)
def test_logits_that_leave_no_doubt_have_a_finite_loss_and_gradient(name: str) -> None:
    """Of students and teachers that give some classes, or all but one, a probability of 0."""
    method = build(name)
    method.begin_interval(0)
    logits, batch = random_step(teachers_of(name), 1, scale=1e4)
    for z in (logits, logits.detach().float().requires_grad_()):
        losses = method.loss(z, batch).total
        (gradient,) = torch.autograd.grad(losses.sum(), z)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["kd-average", "kd-entropy", "ca-mkd"])
def test_equal_teachers_are_one_teacher(name: str) -> None:
    method, kd = build(name, ce_weight=0.0), build("kd", alpha=1.0)
    logits, batch = random_step(1, 1)
    several = replace(batch, teachers=batch.teachers * 3)
    loss = method.loss(logits, several).total
    torch.testing.assert_close(loss, kd.loss(logits, batch).total, rtol=1e-6, atol=0.0)


def test_with_the_right_weights_the_decoupled_parts_are_plain_kd() -> None:
    """KL = TCKD + (1 - q_y) NCKD for each sample: equation 6 of the paper, here with a single sample."""
    logits, batch = random_step(1, 1)
    sample = replace(
        batch, labels=batch.labels[:, :1], teachers=(TeacherOutputs(batch.teachers[0].logits[:, :1], None),)
    )
    label = int(sample.labels)
    beta = 1 - float(softmax(sample.teachers[0].logits[0, 0].double() / 4)[label])
    dkd, kd = build("dkd", ce_weight=0.0, beta=beta, warmup=0.0), build("kd", alpha=1.0)
    dkd.begin_interval(0)
    loss = dkd.loss(logits[:, :1], sample).total
    torch.testing.assert_close(loss, kd.loss(logits[:, :1], sample).total, rtol=1e-6, atol=0.0)


def test_dkd_warms_up_in_place_over_a_share_of_the_run() -> None:
    method = build("dkd", ce_weight=0.0, warmup=0.25)  # 6 epochs of 24
    logits, batch = random_step(1, 1)
    place, losses = method.warmup_factor.data_ptr(), []  # type: ignore[attr-defined]
    for epoch in range(8):
        method.begin_interval(epoch)
        losses.append(method.loss(logits, batch).total.item())
    assert [loss / losses[-1] for loss in losses] == pytest.approx([k / 6 for k in range(1, 7)] + [1, 1], rel=1e-6)
    assert method.warmup_factor.data_ptr() == place, "a captured step holds the address"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", EVERY)
def test_a_method_restored_from_its_state_goes_on_with_the_same_numbers(name: str) -> None:
    teachers = teachers_of(name)
    whole, restored = build(name), build(name)
    for epoch in range(2):
        whole.begin_interval(epoch)
        whole.loss(*random_step(teachers, 1, seed=epoch))
    restored.load_state_dict(whole.state_dict())
    logits, batch = random_step(teachers, 1, seed=2)
    for method in (whole, restored):
        method.begin_interval(2)
    assert whole.loss(logits, batch).total.tolist() == restored.loss(logits, batch).total.tolist()


@pytest.mark.parametrize("name", EVERY)
def test_a_teacher_of_some_classes_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^teacher some-run knows 2 of the 6 classes: this method learns from"):
        build(name, labels=(0, 3))


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        (
            "dkd",
            "temperature",
            0.0,
            "recipe key 'loss.temperature': Input should be greater than or equal to 0.01 (got 0.0)",
        ),
        ("dkd", "warmup", 1.5, "recipe key 'loss.warmup': Input should be less than or equal to 1 (got 1.5)"),
        ("dkd", "betta", 1.0, "unknown recipe key 'loss.betta': did you mean 'beta'?"),
        ("kd-average", "ce_weight", -1.0, "recipe key 'loss.ce_weight': Input should be greater than or equal to 0"),
        ("kd-entropy", "temperature", math.nan, "recipe key 'loss.temperature': Input should be a finite number"),
        ("ca-mkd", "kd_weigth", 1.0, "unknown recipe key 'loss.kd_weigth': did you mean 'kd_weight'?"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(name: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        make_recipe({"method": name, "loss": {key: value}})
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
