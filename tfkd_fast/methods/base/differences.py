"""Central differences for second-order terms: the fused operators provide first derivatives only."""

from collections.abc import Callable

import torch
from torch import Tensor

PERTURBATION = 1e-2
"""Length of the step along which weights are moved, as in DARTS (Liu et al., ICLR 2019, section 2.3)."""

Tensors = list[Tensor] | tuple[Tensor, ...]
"""One tensor for each weight."""


def derivatives_along(
    direction: Tensors,
    weights: Tensors,
    here: Tensors,
    values: Callable[[], list[Tensor]],
    perturbation: float = PERTURBATION,
) -> list[Tensor]:
    """Directional derivatives by central differences: (f(w + s d) - f(w - s d)) / 2s.

    Args:
        direction: d, one tensor for each weight, of its shape and dtype. A length of 0 gives NaN.
        weights: what `values` reads. They are changed in place, and stay changed.
        here: w, their values where the derivative is taken.
        values: works out f by the present weights: any number of tensors.
        perturbation: the length of s d, over all weights together.

    Returns:
        A derivative for each tensor of `values`, of its shape.
    """
    small = perturbation / torch.stack(torch._foreach_norm(direction)).norm()
    shift = torch._foreach_mul(direction, small)
    ends = []
    for move in (torch._foreach_add, torch._foreach_sub):
        with torch.no_grad():
            torch._foreach_copy_(weights, move(here, shift))
        ends.append(values())
    return [(plus - minus) / (2.0 * small) for plus, minus in zip(*ends, strict=True)]
