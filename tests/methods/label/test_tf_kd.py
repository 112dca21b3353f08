"""Teacher-free KD against the equations of the paper, and against the authors' code in torch's own losses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.steps import CLASSES, SHAPES, assert_teaches, build, random_step
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import StepBatch, TeacherFacts
from tfkd_fast.models import FeatureShapes
from tfkd_fast.runs.recipe import make_recipe

SELF_DEFAULTS = {"temperature": 6.0, "alpha": 0.95, "multiplier": 50.0}
REG_DEFAULTS = {"temperature": 20.0, "alpha": 0.1, "multiplier": 100.0, "true_mass": 0.99}
TOLERANCE = 1e-12  # everything is computed in float64, from the same numbers


def earlier(
    model: str = "vgg8", labels: tuple[int, ...] = tuple(range(CLASSES)), shapes: FeatureShapes = SHAPES
) -> TeacherFacts:
    return TeacherFacts("earlier", model, labels, shapes)


def softened(logits: Tensor, temperature: float) -> Tensor:
    weights = (logits / temperature).exp()
    return weights / weights.sum(-1, keepdim=True)


def kl(target: Tensor, prediction: Tensor) -> Tensor:
    """KL(target || prediction) of each sample, for distributions without zeros."""
    return (target * (target.log() - prediction.log())).sum(-1)


def authors_kl(log_prediction: Tensor, target: Tensor) -> Tensor:
    """nn.KLDivLoss() as it was when the code was written: the mean over batch and classes."""
    return F.kl_div(log_prediction, target, reduction="none").mean()


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(own, y) for own, y in zip(logits, labels, strict=True)])


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("loss", [{}, {"temperature": 2.5, "alpha": 0.4}, {"alpha": 0.0}, {"alpha": 1.0}])
def test_self_by_the_paper(loss: dict[str, float], candidates: int) -> None:
    method = build("tf-kd-self", (earlier(),), **loss)
    logits, batch = random_step(0, candidates, teachers=1)
    values = SELF_DEFAULTS | loss
    temperature, alpha = values["temperature"], values["alpha"]
    teacher = softened(batch.teachers[0].logits.double(), temperature)
    soft = temperature**2 * kl(teacher, softened(logits, temperature)).mean(-1)
    expected = (1 - alpha) * cross_entropies(logits, batch.labels) + alpha * soft
    assert_teaches(method, logits, batch, expected, TOLERANCE)


@pytest.mark.parametrize("loss", [{}, {"temperature": 2.5, "alpha": 0.4, "multiplier": 10.0}])
def test_self_by_the_reference_code(loss: dict[str, float]) -> None:
    """`loss_kd_self`: both sides softened, times T^2, times the multiplier."""
    method = build("tf-kd-self", (earlier(),), convention="reference", **loss)
    logits, batch = random_step(0, 2, teachers=1)
    values = SELF_DEFAULTS | loss
    temperature, alpha = values["temperature"], values["alpha"]
    soft = [
        authors_kl(F.log_softmax(own / temperature, dim=1), F.softmax(teacher / temperature, dim=1))
        for own, teacher in zip(logits, batch.teachers[0].logits.double(), strict=True)
    ]
    soft_loss = torch.stack(soft) * temperature**2 * values["multiplier"]
    expected = (1 - alpha) * cross_entropies(logits, batch.labels) + alpha * soft_loss
    assert_teaches(method, logits, batch, expected, TOLERANCE)


def virtual_teacher(labels: Tensor, true_mass: float) -> Tensor:
    """(...,C) float64, one sample after the other."""
    rows = [
        [true_mass if c == label else (1 - true_mass) / (CLASSES - 1) for c in range(CLASSES)]
        for label in labels.flatten().tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(*labels.shape, CLASSES)


REG_TOLERANCE = {"paper": 400 * 6e-8, "reference": 20 * 6e-8}
"""The class table is float32: 6e-8 of each entry, which counts T^2 = 400 times or kappa / C = 20 times."""


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("loss", [{}, {"temperature": 0.5, "alpha": 0.7, "true_mass": 0.9}, {"alpha": 1.0}])
def test_reg_by_the_paper(loss: dict[str, float], candidates: int) -> None:
    """The class table gives what a teacher for each sample would."""
    method = build("tf-kd-reg", **loss)
    logits, batch = random_step(0, candidates)
    values = REG_DEFAULTS | loss
    temperature, alpha = values["temperature"], values["alpha"]
    teacher = softened(virtual_teacher(batch.labels, values["true_mass"]), temperature)
    soft = temperature**2 * kl(teacher, softened(logits, temperature)).mean(-1)
    expected = (1 - alpha) * cross_entropies(logits, batch.labels) + alpha * soft
    assert_teaches(method, logits, batch, expected, REG_TOLERANCE["paper"])


@pytest.mark.parametrize("loss", [{}, {"temperature": 0.5, "alpha": 0.95, "multiplier": 1.0}])
def test_reg_by_the_reference_code(loss: dict[str, float]) -> None:
    """`loss_kd_regularization`: the student is not softened, and there is no T^2."""
    method = build("tf-kd-reg", convention="reference", **loss)
    logits, batch = random_step(0, 2)
    values = REG_DEFAULTS | loss
    teachers = F.softmax(virtual_teacher(batch.labels, 0.99) / values["temperature"], dim=-1)
    soft = [
        authors_kl(F.log_softmax(own, dim=1), teacher) * values["multiplier"]
        for own, teacher in zip(logits, teachers, strict=True)
    ]
    expected = (1 - values["alpha"]) * cross_entropies(logits, batch.labels) + values["alpha"] * torch.stack(soft)
    assert_teaches(method, logits, batch, expected, REG_TOLERANCE["reference"])


def test_with_a_multiplier_of_c_the_conventions_differ_in_the_temperature_alone() -> None:
    logits, batch = random_step(0, teachers=1)
    for name, teachers, temperature in (("tf-kd-self", (earlier(),), 6.0), ("tf-kd-reg", (), 1.0)):
        keys: dict[str, Any] = {"temperature": temperature}
        paper = build(name, teachers, convention="paper", **keys)
        reference = build(name, teachers, convention="reference", multiplier=CLASSES, **keys)
        torch.testing.assert_close(
            reference.loss(logits, batch).total, paper.loss(logits, batch).total, rtol=1e-12, atol=0.0
        )


def test_a_teacher_of_another_architecture_is_refused() -> None:
    with pytest.raises(UserError, match=r"teacher earlier is a vgg13 and the student a vgg8: .* method kd"):
        build("tf-kd-self", (earlier("vgg13"),))
    wider = FeatureShapes(tuple((2 * width, *size) for width, *size in SHAPES.maps), 2 * SHAPES.pooled)
    with pytest.raises(UserError, match="teacher earlier is a vgg8 of another width and the student a vgg8: "):
        build("tf-kd-self", (earlier(shapes=wider),))


def test_a_teacher_of_some_classes_is_refused() -> None:
    with pytest.raises(UserError, match="teacher earlier knows 2 of the 5 classes"):
        build("tf-kd-self", (earlier(labels=(1, 3)),))


@pytest.mark.parametrize("method", ["tf-kd-self", "tf-kd-reg"])
@pytest.mark.parametrize(
    ("loss", "key"),
    [
        ({"convention": "code"}, "loss.convention"),
        ({"temperature": 0.0}, "loss.temperature"),
        ({"alpha": 1.5}, "loss.alpha"),
        ({"multiplier": -1.0}, "loss.multiplier"),
        ({"multiplier": 10.0}, "where loss.convention is paper: it belongs to reference"),
        ({"kappa": 50.0}, "loss.kappa"),
    ],
)
def test_bad_settings(method: str, loss: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        make_recipe({"method": method, "loss": loss})


def test_only_reg_has_a_virtual_teacher() -> None:
    assert make_recipe({"method": "tf-kd-reg", "loss": {"true_mass": 0.9}})
    with pytest.raises(UserError, match=r"unknown recipe key 'loss\.true_mass'"):
        make_recipe({"method": "tf-kd-self", "loss": {"true_mass": 0.9}})


@pytest.mark.parametrize("name", ["tf-kd-self", "tf-kd-reg"])
def test_there_is_no_state_to_restore(name: str) -> None:
    """Steps leave nothing behind: a run that is resumed with an empty state computes the same loss."""
    teachers = (earlier(),) if name == "tf-kd-self" else ()
    method, resumed = build(name, teachers), build(name, teachers)
    steps: list[tuple[Tensor, StepBatch]] = [random_step(seed, teachers=1) for seed in range(2)]
    method.begin_interval(0)
    method.loss(*steps[0])
    method.end_epoch([])
    state = method.state_dict()
    assert state == {}
    resumed.load_state_dict(state)
    for each in (method, resumed):
        each.begin_interval(1)
    assert torch.equal(method.loss(*steps[1]).total, resumed.loss(*steps[1]).total)
