"""The confidence penalty against its formula and the gradient worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.methods.steps import BATCH, CLASSES, assert_teaches, build, random_step
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import StepBatch
from tfkd_fast.runs.recipe import make_recipe


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("beta", [0.1, 1.0, 0.0])
def test_the_loss_is_the_cross_entropy_less_the_entropy(beta: float, candidates: int) -> None:
    method = build("confidence-penalty") if beta == 0.1 else build("confidence-penalty", beta=beta)
    logits, batch = random_step(0, candidates)
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    entropy = torch.distributions.Categorical(probs=p).entropy().mean(-1)
    hard = torch.stack([F.cross_entropy(own, y) for own, y in zip(logits, batch.labels, strict=True)])
    assert_teaches(method, logits, batch, hard - beta * entropy, 1e-12)


def test_the_gradient_is_the_one_worked_out_by_hand() -> None:
    """dH/dz = -p (log p + H)."""
    logits, batch = random_step(1)
    loss = build("confidence-penalty", beta=0.3).loss(logits, batch).total
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    p = logits.detach().softmax(-1)
    entropy = torch.special.entr(p).sum(-1, keepdim=True)
    expected = p - F.one_hot(batch.labels, CLASSES) + 0.3 * p * (p.log() + entropy)
    torch.testing.assert_close(gradient, expected / BATCH, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("confidence", [1e3, 1e4])
def test_a_certain_prediction_has_no_entropy_and_a_gradient_that_is_a_number(confidence: float) -> None:
    """Probabilities underflow to 0 in float32."""
    logits = torch.zeros(1, 2, CLASSES)
    logits[:, :, 1] = confidence
    logits.requires_grad_()
    batch = StepBatch(torch.ones(1, 2, dtype=torch.int64), torch.tensor([[0, 1]]))
    loss = build("confidence-penalty").loss(logits, batch).total
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.item() == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("beta", [-0.1, math.inf, math.nan])
def test_bad_settings(beta: float) -> None:
    with pytest.raises(UserError, match=r"loss\.beta"):
        make_recipe({"method": "confidence-penalty", "loss": {"beta": beta}})
