"""Standardised logits, and the methods that match them."""

from dataclasses import replace

import pytest
import torch

from tests.methods.published import CLASSES, build, outputs, waves
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import TeacherOutputs
from tfkd_fast.methods.one_teacher.logits.kd_ls import standardise
from tfkd_fast.runs.recipe import make_recipe


def test_standardised_logits_have_mean_0_and_deviation_1() -> None:
    logits = standardise(10.0 + 3.0 * waves(2, 4, CLASSES, phase=1))
    assert logits.mean(-1).abs().max() < 1e-12
    torch.testing.assert_close(logits.std(-1), torch.ones(2, 4, dtype=torch.float64), rtol=1e-6, atol=0.0)


def test_equal_logits_have_a_gradient() -> None:
    logits = torch.zeros(3, CLASSES, requires_grad=True)
    (gradient,) = torch.autograd.grad(standardise(logits)[..., 0].sum(), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("name", "term"), [("kd-ls", "soft"), ("dkd-ls", "soft"), ("mlkd-ls", "instances")])
def test_level_and_scale_of_logits_do_not_count(name: str, term: str) -> None:
    method = build(name)
    leaves, batch = outputs()
    other = replace(batch, teachers=(TeacherOutputs(2.0 + 1.5 * batch.teachers[0].logits),))
    first = method.loss(leaves["logits"], batch).terms[term]
    second = method.loss(7.0 + 5.0 * leaves["logits"], other).terms[term]
    torch.testing.assert_close(first, second, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", ["kd-ls", "dkd-ls", "mlkd-ls"])
def test_refined_teachers_are_refused(name: str) -> None:
    recipe = make_recipe({"method": name, "teachers": {"runs": ["a"], "adjust": "swap"}})
    with pytest.raises(UserError, match="learns from more than softened predictions"):
        build(name, teachers=recipe.options.teachers.model_dump())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["dkd-ls", "mlkd-ls"])
def test_the_name_stands_for_standardised_logits(name: str) -> None:
    with pytest.raises(UserError, match=r"so loss\.standardise cannot be False: choose another method"):
        make_recipe({"method": name, "loss": {"standardise": False}})
