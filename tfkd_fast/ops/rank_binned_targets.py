"""Rank-binned targets: class tables whose mass depends on the rank of a class by similarity (our choice)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from tfkd_fast.ops import backends, checks, fused


def rank_binned_targets(
    similarity: Tensor,
    true_mass: Tensor,
    bin_masses: Tensor,
    bin_starts: Sequence[int],
    *,
    backend: str | None = None,
) -> Tensor:
    """Return row-stochastic class tables: row y is the target distribution for label y.

    The classes other than y are ranked 1..C-1 by `similarity[y]`, highest first; ties go by class index and NaN ranks
    last. The true class gets `true_mass`; a class whose rank lies in bin j gets
    `(1 - true_mass) * bin_masses[j] / n_j`, where n_j is the number of ranks in the bin. Bin masses in proportion to
    n_j give label smoothing. The parameterisation is our choice. No gradient.

    Args:
        similarity: (C,C) or (P,C,C) floating point, C >= 2; any monotone scale.
        true_mass: () or (P,), mass of the true class, 0..1.
        bin_masses: (J,) or (P,J), non-negative, each row summing to 1. The values are not checked: that would make the
            host wait for the device.
        bin_starts: J ascending ranks, the first of each bin: the first is 1 and none exceeds C-1.
        backend: an operator backend; None picks the fastest that serves the tensors.

    Returns:
        (C,C), or (P,C,C) where any of the tensors has the P axis, in the dtype and on the device of `similarity`.

    Raises:
        ValueError: for shapes or bin starts that do not fit; TypeError for a similarity that is not floating point.
    """
    _check(similarity, true_mass, bin_masses, bin_starts)
    # from tangents of forward-mode differentiation, too
    similarity, true_mass, bin_masses = similarity.detach(), true_mass.detach(), bin_masses.detach()
    function = backends.select("rank_binned_targets", backend, similarity)
    table: Tensor = function(similarity, true_mass, bin_masses, bin_starts)
    return table


def _check(similarity: Tensor, true_mass: Tensor, bin_masses: Tensor, bin_starts: Sequence[int]) -> None:
    checks.check_tensors(similarity=similarity, true_mass=true_mass, bin_masses=bin_masses)
    if not similarity.is_floating_point():
        raise TypeError(f"similarity must be floating point, got {similarity.dtype}")
    for name, masses in (("true_mass", true_mass), ("bin_masses", bin_masses)):
        if not masses.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {masses.dtype}")
        checks.check_device(name, masses, "similarity", similarity)
    if similarity.dim() not in (2, 3) or similarity.shape[-1] != similarity.shape[-2] or similarity.shape[-1] < 2:
        raise ValueError(f"similarity must be (C,C) or (P,C,C) with C >= 2, got {tuple(similarity.shape)}")
    if true_mass.dim() > 1:
        raise ValueError(f"true_mass must be () or (P,), got {tuple(true_mass.shape)}")
    num_bins = len(bin_starts)
    if bin_masses.dim() not in (1, 2) or bin_masses.shape[-1] != num_bins:
        raise ValueError(
            f"bin_masses must be (J,) or (P,J) with J = {num_bins} bin starts, got {tuple(bin_masses.shape)}"
        )
    sizes = {shape[0] for shape in (similarity.shape[:-2], true_mass.shape, bin_masses.shape[:-1]) if shape}
    if len(sizes) > 1:
        raise ValueError(
            f"similarity {tuple(similarity.shape)}, true_mass {tuple(true_mass.shape)} and bin_masses "
            f"{tuple(bin_masses.shape)} must have the same P"
        )
    num_classes = similarity.shape[-1]
    if not all(isinstance(start, int) for start in bin_starts):
        raise TypeError(f"bin_starts must be integers, got {list(bin_starts)}")
    ranks = [*bin_starts, num_classes]
    if ranks[0] != 1 or any(start >= end for start, end in pairwise(ranks)):
        raise ValueError(
            f"bin_starts must begin with 1 and ascend to at most C-1 = {num_classes - 1}, got {list(bin_starts)}"
        )


# The definition.


@torch.no_grad()
def _reference(similarity: Tensor, true_mass: Tensor, bin_masses: Tensor, bin_starts: Sequence[int]) -> Tensor:
    num_classes = similarity.shape[-1]
    true_mass = true_mass.to(similarity.dtype).unsqueeze(-1)  # (...,1)
    bin_masses = (1.0 - true_mass) * bin_masses.to(similarity.dtype)  # (...,J)
    bin_sizes = [end - start for start, end in pairwise([*bin_starts, num_classes])]
    shares = [
        (bin_masses[..., j : j + 1] / size).expand(*bin_masses.shape[:-1], size) for j, size in enumerate(bin_sizes)
    ]
    mass_by_rank = torch.cat([true_mass.expand(*bin_masses.shape[:-1], 1), *shares], dim=-1)  # (...,C)

    # Ascending order of the negated similarity, because torch sorts NaN to the end of an ascending order.
    order = torch.argsort(-similarity, dim=-1, stable=True)
    position = torch.argsort(order, dim=-1)
    own_position = torch.diagonal(position, dim1=-2, dim2=-1).unsqueeze(-1)
    rank = position + (position < own_position)  # leaving the true class out closes the gap it makes: 1..C-1
    true_class = torch.eye(num_classes, dtype=torch.bool, device=similarity.device)
    rank = rank.masked_fill(true_class, 0)

    batch = similarity.shape[:-2] or mass_by_rank.shape[:-1]
    table_shape = (*batch, num_classes, num_classes)
    return mass_by_rank.unsqueeze(-2).expand(table_shape).gather(-1, rank.expand(table_shape))


# The fused backends.


def _fused(
    operator: OpOverload, similarity: Tensor, true_mass: Tensor, bin_masses: Tensor, bin_starts: Sequence[int]
) -> Tensor:
    masses = (masses.to(similarity.dtype) for masses in (true_mass, bin_masses))
    table: Tensor = operator(similarity, *masses, bin_starts)
    return table


def _fake(similarity: Tensor, true_mass: Tensor, bin_masses: Tensor, bin_starts: Sequence[int]) -> Tensor:
    lead = similarity.shape[:-2] or true_mass.shape or bin_masses.shape[:-1]
    return similarity.new_empty(*lead, *similarity.shape[-2:])


def _vmap(operator: OpOverload, info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    *tensors, bin_starts = args
    folded, lead = fused.fold_any_candidates(info, in_dims[:3], tensors, (2, 0, 1))
    return fused.unfold_candidates(operator(*folded, bin_starts), lead)


fused.define(
    "rank_binned_targets",
    "rank_binned_targets",
    "(Tensor similarity, Tensor true_mass, Tensor bin_masses, int[] bin_starts) -> Tensor",
    _fake,
    _vmap,
)
backends.register("rank_binned_targets", "reference", _reference)
fused.register("rank_binned_targets", _fused)
