"""Derivatives that a method needs of what has no second derivative: fused operators have one."""

from collections.abc import Callable

import torch
from torch import Tensor

PERTURBATION = 1e-2
"""Length of the step along which is differentiated, as in DARTS (Liu et al., ICLR 2019, section 2.3)."""

Tensors = list[Tensor] | tuple[Tensor, ...]
"""One a weight."""


def derivatives_along(
    direction: Tensors,
    weights: Tensors,
    here: Tensors,
    values: Callable[[], list[Tensor]],
    perturbation: float = PERTURBATION,
) -> list[Tensor]:
    """Derivatives along `direction` of what depends on the weights, where they are `here`: central differences.

    The weights stay changed. A direction of length 0 gives NaN.
    """
    small = perturbation / torch.stack(torch._foreach_norm(direction)).norm()
    shift = torch._foreach_mul(direction, small)
    ends = []
    for move in (torch._foreach_add, torch._foreach_sub):
        with torch.no_grad():
            torch._foreach_copy_(weights, move(here, shift))
        ends.append(values())
    return [(above - below) / (2.0 * small) for above, below in zip(*ends, strict=True)]
