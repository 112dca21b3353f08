"""The temperature that CTKD learns."""

import math

import pytest
import torch

from tests.methods.published import build, outputs
from tfkd_fast.methods.base import Interval
from tfkd_fast.methods.one_teacher.logits.ctkd import CTKD


def make(**loss: float) -> CTKD:
    method = build("ctkd", loss=loss)
    assert isinstance(method, CTKD)
    assert method.adapters is not None
    method.adapters.double()
    return method


def test_a_step_against_its_gradient_makes_the_loss_of_the_student_larger() -> None:
    method = make()
    leaves, batch = outputs()
    assert method.adapters is not None
    (weight,) = method.adapters.parameters()
    before = method.loss(leaves["logits"], batch).terms["soft"]
    (gradient,) = torch.autograd.grad(before.sum(), weight)
    with torch.no_grad():
        weight -= 0.1 * gradient
    assert bool(method.loss(leaves["logits"], batch).terms["soft"] > before)


def test_the_gradient_grows_along_a_cosine_in_place() -> None:
    method = make(warmup=0.25)  # 6 epochs of 24
    place, strengths = method.strength.data_ptr(), []
    for epoch in range(8):
        method.resume_interval(Interval(epoch, 1, 1))
        strengths.append(float(method.strength))
    expected = [(1 - math.cos(math.pi * k / 6)) / 2 for k in range(1, 7)] + [1, 1]
    assert strengths == pytest.approx(expected, rel=1e-6)
    assert method.strength.data_ptr() == place, "a captured step holds the address"


def test_the_temperature_stays_within_its_bounds_and_is_in_the_summary() -> None:
    method = make(lowest=2.0, span=5.0)
    assert method.adapters is not None
    (weight,) = method.adapters.parameters()
    assert method.summary()["temperature"] == pytest.approx(2 + 5 / (1 + math.exp(-1)))
    for value, temperature in ((-50.0, 2.0), (50.0, 7.0)):
        torch.nn.init.constant_(weight, value)
        assert method.summary()["temperature"] == pytest.approx(temperature)
