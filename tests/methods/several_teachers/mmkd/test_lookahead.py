"""The gradient through steps of training: against finite differences and against torch's double backward."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tests.methods.steps import descend, rollback
from tfkd_fast import ops
from tfkd_fast.data import Batch
from tfkd_fast.methods.base import TeacherOutputs
from tfkd_fast.methods.base.differences import PERTURBATION
from tfkd_fast.methods.several_teachers.mmkd.lookahead import meta_gradient
from tfkd_fast.models import ModelSettings, build_model

CLASSES, BATCH, TEACHERS = 4, 12, 2
OPTIMIZERS = [(0.0, 0.0, False), (0.9, 5e-4, False), (0.9, 5e-4, True)]
"""Momentum, weight decay, Nesterov."""


@dataclass
class Step:
    """`methods.base.TrainingStep` of weights that belong to no network."""

    weights: list[Tensor]
    momenta: list[Tensor]
    momentum: float
    weight_decay: float
    nesterov: bool
    learning_rate: float = 0.1

    def loss(self) -> Tensor:
        raise AssertionError("the look-ahead has no use for it")

    def descend(self, gradients: Sequence[Tensor]) -> None:
        descend(self, gradients)

    def holdout(self) -> Batch:
        raise AssertionError("the look-ahead has no use for it")

    def teach(self, images: Tensor) -> tuple[TeacherOutputs, ...]:
        raise AssertionError("the look-ahead has no use for it")

    def rollback(self) -> AbstractContextManager[None]:
        return rollback([*self.weights, *self.momenta])


Weights = list[Tensor]


def unrolled(
    step: Step, matching: Callable[[Weights], tuple[Tensor, Tensor]], outer: Callable[[Weights], Tensor]
) -> Tensor:
    """The outer loss after the three steps of torch.optim.SGD, differentiable in all that `matching` depends on."""
    weights = [weight.detach().clone().requires_grad_() for weight in step.weights]
    momenta = [momentum.clone() for momentum in step.momenta]

    def matching_loss(weights: Weights) -> Tensor:
        terms, shares = matching(weights)
        return (terms * shares).sum()

    for loss in (matching_loss, matching_loss, outer):
        gradients = torch.autograd.grad(loss(weights), weights, create_graph=True)
        directions = [g + step.weight_decay * w for g, w in zip(gradients, weights, strict=True)]
        momenta = [step.momentum * m + d for m, d in zip(momenta, directions, strict=True)]
        if step.nesterov:
            directions = [d + step.momentum * m for m, d in zip(momenta, directions, strict=True)]
        moves = directions if step.nesterov else momenta
        weights = [w - step.learning_rate * move for w, move in zip(weights, moves, strict=True)]
    return outer(weights)


@pytest.mark.parametrize(("momentum", "decay", "nesterov"), OPTIMIZERS)
def test_a_quadratic_of_two_weights_against_finite_differences(momentum: float, decay: float, nesterov: bool) -> None:
    """Its gradients are linear, so that only rounding is between the two."""
    generator = torch.Generator().manual_seed(1)
    roots = torch.randn(TEACHERS + 1, 2, 2, generator=generator, dtype=torch.float64)
    bowls = roots @ roots.transpose(1, 2)
    centres = torch.randn(TEACHERS + 1, 2, generator=generator, dtype=torch.float64)
    weight, velocity = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    theta = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    step = Step([weight.requires_grad_()], [velocity], momentum, decay, nesterov)

    def heights(weights: Weights) -> Tensor:
        away = weights[0] - centres
        return 0.5 * torch.einsum("mi,mij,mj->m", away, bowls, away)

    def matching(weights: Weights) -> tuple[Tensor, Tensor]:
        return heights(weights)[:TEACHERS], theta.softmax(0)

    def outer(weights: Weights) -> Tensor:
        return heights(weights)[TEACHERS]

    (gradient,) = meta_gradient(step, lambda: matching(step.weights), lambda: outer(step.weights), [theta])
    differences = []
    for index in range(2):
        ends = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                theta[index] += sign * 1e-5
            ends.append(unrolled(step, matching, outer).detach())
            with torch.no_grad():
                theta[index] -= sign * 1e-5
        differences.append((ends[0] - ends[1]) / 2e-5)
    # theirs err by the square of 1e-5 and by a rounding of 1e-16 over it
    torch.testing.assert_close(gradient, torch.stack(differences), rtol=1e-8, atol=1e-10)
    assert gradient.abs().min() > 1e-3


def smooth() -> nn.Module:
    """Convolution, batch norm and a linear layer, without kinks."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(8), nn.Flatten(),
        nn.Linear(3 * 16, CLASSES),
    )  # fmt: skip


def vgg() -> nn.Module:
    return build_model(ModelSettings(width=0.125), CLASSES, 1, seed=0)


@pytest.mark.parametrize(("momentum", "decay", "nesterov"), OPTIMIZERS)
@pytest.mark.parametrize(
    ("build", "dtype", "perturbation", "error"),
    [(smooth, torch.float64, 1e-4, 1e-7), (vgg, torch.float64, 1e-6, 1e-7), (vgg, torch.float32, PERTURBATION, 0.05)],
    ids=["smooth", "vgg", "vgg-float32"],
)
def test_networks_against_double_backward(
    build: Callable[[], nn.Module],
    dtype: torch.dtype,
    perturbation: float,
    error: float,
    momentum: float,
    decay: float,
    nesterov: bool,
) -> None:
    """The terms are divergences from teachers, the shares those of a network that sees the student's logits.

    A central difference errs by the square of its length, 1e-8 for smooth networks, and by rounding, 1e-16 over it. The
    step of 1e-2 that float32 wants passes kinks of ReLU and maxima, where second derivatives jump: relative errors of
    0.05 to 2 % were measured.
    """
    model = build().train()
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(BATCH, 1, 32, 32, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    teachers = (2.0 * torch.randn(TEACHERS, BATCH, CLASSES, generator=generator)).softmax(-1)
    velocities = [0.05 * torch.randn(weight.shape, generator=generator) for weight in model.parameters()]
    torch.manual_seed(3)
    theta = nn.Linear(CLASSES, TEACHERS)

    def gradient_in(dtype: torch.dtype, derive: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        model.to(dtype)
        theta.to(dtype)
        names, targets = [name for name, _ in model.named_parameters()], teachers.to(dtype)
        weights = [weight.detach().clone().requires_grad_() for weight in model.parameters()]
        step = Step(weights, [velocity.to(dtype) for velocity in velocities], momentum, decay, nesterov)

        def logits(weights: Weights) -> Tensor:
            return functional_call(model, dict(zip(names, weights, strict=True)), (images.to(dtype),))

        def matching(weights: Weights) -> tuple[Tensor, Tensor]:
            seen = logits(weights)
            terms = F.kl_div(seen.log_softmax(-1), targets, reduction="none").sum(-1).T / BATCH
            return terms, theta(seen.detach()).softmax(-1)

        def outer(weights: Weights) -> Tensor:
            return F.cross_entropy(logits(weights), labels)

        return torch.cat([part.double().flatten() for part in derive(step, matching, outer)])

    def by_double_backward(step: Step, matching: Callable, outer: Callable) -> tuple[Tensor, ...]:
        with ops.using_backend("reference"):  # the fused operators have first derivatives only
            return torch.autograd.grad(unrolled(step, matching, outer), list(theta.parameters()))

    def by_differences(step: Step, matching: Callable, outer: Callable) -> tuple[Tensor, ...]:
        own, judged = (lambda: matching(step.weights)), (lambda: outer(step.weights))
        return meta_gradient(step, own, judged, list(theta.parameters()), perturbation=perturbation)

    exact = gradient_in(torch.float64, by_double_backward)
    found = gradient_in(dtype, by_differences)
    assert (found - exact).norm() < error * exact.norm()
