"""Adam with decoupled weight decay, in place over lists of tensors, so that a captured step can hold it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from tfkd_fast.ops.sgd_step import match_layout
from tfkd_fast.runs.optimizer import AdamWSettings


@torch.no_grad()
def adamw_step(
    weights: list[Tensor],
    gradients: Sequence[Tensor],
    first_moments: list[Tensor],
    second_moments: list[Tensor],
    steps: list[Tensor],
    learning_rate: Tensor,
    settings: AdamWSettings,
) -> None:
    """One update by the fused function of `torch.optim.AdamW`.

    Args:
        weights, first_moments, second_moments: floating point, changed in place; the moments are of the same shapes and
            strides as the weights. There may be none.
        gradients: of the same shapes.
        steps: float32 without axes, the number of steps that each weight took; increased by 1.
        learning_rate: one float32 value on the device of the weights. A captured step reads it anew.
    """
    adamw(
        weights,
        [match_layout(weight, gradient) for weight, gradient in zip(weights, gradients, strict=True)],
        first_moments,
        second_moments,
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=settings.beta1,
        beta2=settings.beta2,
        lr=learning_rate,
        weight_decay=settings.weight_decay,
        eps=settings.epsilon,
        maximize=False,
    )
