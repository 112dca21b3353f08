"""The gradient of the loss after a few steps of training in the weights that teachers had in them."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from tfkd_fast.methods.base import TrainingStep
from tfkd_fast.methods.base.differences import PERTURBATION, Tensors, derivatives_along

MATCHING_STEPS = 2

Matching = Callable[[], tuple[Tensor, Tensor]]
"""Computes terms and shares of one shape by the present weights: the loss is the sum of their products. The terms carry
gradient to the weights, the shares carry gradient to Theta and count as constants in the loss."""


def meta_gradient(
    step: TrainingStep,
    matching: Matching,
    outer: Callable[[], Tensor],
    theta: Sequence[Tensor],
    *,
    perturbation: float = PERTURBATION,
) -> tuple[Tensor, ...]:
    """Gradient in `theta` of the outer loss (), after two steps on the matching loss and one on the outer loss.

    Going backwards, with a and b the derivatives in weights and momenta after a step, its update (ops.sgd_step) gives

        u = b - rate * f * a;  Theta += d <G, u> / dTheta;  b <- factor * (b - rate * g * a);  a <- a + H u + decay * u

    where G and H are gradient and second derivative of the step's loss, and f = g = 1, or with Nesterov momentum
    f = 1 + factor and g = factor. For f = g = 1 it is the authors' recurrence, which they use with Nesterov, too.

    They differentiate twice; the fused operators of this package have one derivative. So <G, u> and H u are central
    differences along u, in float32 (our choice, as in DARTS). The shares of a step do not change with the weights, so
    d <G, u> / dTheta needs the differences of the terms alone, and the first step no gradient.

    The weights are changed in place, and put back at the end. A direction of length 0 gives NaN.
    """
    weights = step.weights

    def terms_and_gradients(shares: Tensor) -> list[Tensor]:
        terms, _ = matching()
        return [terms.detach(), *_gradients((terms * shares).sum(), weights)]

    @torch.no_grad()
    def terms_without_gradients() -> list[Tensor]:
        return [matching()[0]]

    with step.rollback():
        path = []
        for _ in range(MATCHING_STEPS):
            terms, shares = matching()
            path.append((_copies(weights), shares))
            _descend(step, (terms * shares.detach()).sum())
        here = _copies(weights)
        _descend(step, outer())

        adjoint = _Adjoint(step, _gradients(outer(), weights))
        direction = adjoint.direction()
        curvature = derivatives_along(direction, weights, here, lambda: [*_gradients(outer(), weights)], perturbation)
        adjoint.go_back(direction, curvature)
        products = []
        while path:
            here, shares = path.pop()
            direction = adjoint.direction()
            if path:
                with_gradients = partial(terms_and_gradients, shares.detach())
                slopes, *curvature = derivatives_along(direction, weights, here, with_gradients, perturbation)
                adjoint.go_back(direction, curvature)
            else:  # what came before does not depend on Theta
                (slopes,) = derivatives_along(direction, weights, here, terms_without_gradients, perturbation)
            products.append((shares * slopes).sum())
    return torch.autograd.grad(torch.stack(products).sum(), theta)


class _Adjoint:
    """Derivatives of the outer loss in weights and momenta, from the last step to the first."""

    def __init__(self, step: TrainingStep, weights: Tensors) -> None:
        self._step = step
        self._weights = weights
        self._momenta: Tensors = [torch.zeros_like(weight) for weight in weights]

    def direction(self) -> Tensors:
        """The derivative u in the gradient of the step that `go_back` goes back over next."""
        ahead = 1.0 + self._step.momentum if self._step.nesterov else 1.0
        return torch._foreach_add(self._momenta, self._weights, alpha=-self._step.learning_rate * ahead)

    def go_back(self, direction: Tensors, curvature: Tensors) -> None:
        """Go back over one step, whose second derivative times `direction` is `curvature`."""
        step = self._step
        ahead = step.momentum if step.nesterov else 1.0
        self._momenta = torch._foreach_add(self._momenta, self._weights, alpha=-step.learning_rate * ahead)
        torch._foreach_mul_(self._momenta, step.momentum)
        self._weights = torch._foreach_add(self._weights, curvature)
        torch._foreach_add_(self._weights, direction, alpha=step.weight_decay)


def _descend(step: TrainingStep, loss: Tensor) -> None:
    step.descend(_gradients(loss, step.weights))


def _gradients(loss: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a loss in the weights; zero for a weight that plays no part."""
    return torch.autograd.grad(loss, weights, materialize_grads=True)


def _copies(weights: list[Tensor]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]
