"""Methods of one teacher have the losses and gradients of the published code, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.one_teacher.published import BATCH, LABELS, PUBLISHED, build, figures, outputs
from tfkd_fast.models import FeatureShapes

NO_SHAPES = FeatureShapes((), 0)


def entropies(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def constant(name: str, student: Tensor, teacher: Tensor) -> float:
    """By how much cross-entropies with a teacher are larger than the divergences that stand for them."""
    labels = LABELS[0]
    if name == "nkd":
        others = torch.stack([torch.cat([row[:y], row[y + 1 :]]) for row, y in zip(teacher, labels, strict=True)])
        return float(3.5 * 3.0**2 * entropies(others / 3.0).mean())
    if name == "wsld":
        errors = [F.cross_entropy(logits, labels, reduction="none") for logits in (student, teacher)]
        weights = 1 - (-errors[0] / errors[1]).exp()
        return float(2.25 * 4.0**2 * (weights * entropies(teacher / 4.0)).mean())
    return 0.0


@pytest.mark.parametrize("name", PUBLISHED)
def test_loss_and_gradient_are_those_of_the_published_code(name: str) -> None:
    method = build(name, NO_SHAPES, NO_SHAPES)
    leaves, batch = outputs()
    if method.adapters is not None:
        method.adapters.double()
        leaves["adapters"] = next(method.adapters.parameters())
    logits, teacher = leaves["logits"], batch.teachers[0].logits
    loss = method.loss(logits, batch).total
    expected = dict(PUBLISHED[name])
    value = expected.pop("value") - constant(name, logits[0].detach(), teacher[0])
    # one-hot labels and factors are float32, and so is 0.9
    assert float(loss.detach()) == pytest.approx(value, rel=1e-6)
    for leaf, wanted in expected.items():
        (gradient,) = torch.autograd.grad(loss.sum(), leaves[leaf], retain_graph=True)
        assert figures(gradient) == pytest.approx(wanted, rel=1e-6, abs=1e-6 / BATCH)
