"""Stochastic gradient descent with momentum, in place over lists of tensors, so that a captured step can hold it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.ops.sgd_step import match_layout
from tfkd_fast.runs.optimizer import SGDSettings


@torch.no_grad()
def sgd_step(
    weights: list[Tensor],
    gradients: Sequence[Tensor],
    momenta: list[Tensor],
    learning_rate: Tensor,
    settings: SGDSettings,
) -> None:
    """One update, as `torch.optim.SGD` makes it; a momentum that is zero stands for its first step.

    Args:
        weights, momenta: float32, changed in place; `momenta` are of the same shapes and strides. There may be none.
        gradients: float32, of the same shapes.
        learning_rate: one float32 value on the device of the weights. A captured step reads it anew.
    """
    if not weights:  # torch's fused update refuses that
        return
    if learning_rate.is_cuda:
        torch._fused_sgd_(
            weights,
            [match_layout(weight, gradient) for weight, gradient in zip(weights, gradients, strict=True)],
            momenta if settings.momentum else [],
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=settings.nesterov,
            maximize=False,
            is_first_step=False,
        )
        return
    ops.sgd_step(
        weights,
        gradients,
        momenta,
        rate=float(learning_rate),  # on the CPU nobody waits for it
        decay=settings.weight_decay,
        factor=settings.momentum,
        nesterov=settings.nesterov,
    )
