"""The ranking of candidates by several criteria: the Borda count."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from tfkd_fast.ops import backends, checks, fused


class CandidateRanking(NamedTuple):
    """A ranking of K candidates by R criteria; for a batch, every shape has the batch axes in front."""

    ranks: Tensor
    """(K,R) float64: ranks under each criterion, of which 1 is best; equal candidates share the average of theirs."""
    scores: Tensor
    """(K,) float64: weighted sums of the ranks of each candidate, of which lower is better."""
    order: Tensor
    """(K,) int64: indices of the candidates, best first."""
    winner: Tensor
    """() int64: index of the best candidate, the first of `order`."""


def rank_candidates(
    criteria: Tensor,
    higher_is_better: Sequence[bool],
    weights: Sequence[float] | None = None,
    *,
    backend: str | None = None,
) -> CandidateRanking:
    """Borda count of K candidates over R criteria: a rank under each, and the weighted sum of the ranks.

    Ranks are those of `scipy.stats.rankdata(method="average")` on the values turned so that lower is better. NaN ranks
    after every number; several NaN share the average of their ranks. Only the order of the values counts, so a
    criterion may be on any scale.

    Equal scores are broken by the rank under the first criterion, then the second, and so on, then by the lower index:
    put the most trusted criterion first. Scores count as equal to 9 decimals, so that rounding in the weighted sum
    breaks no tie.

    Args:
        criteria: (...,K,R) floating point, K >= 1, R >= 1. Memory grows with K^2: this is for populations, not samples.
        higher_is_better: R directions.
        weights: R non-negative numbers; None for 1 each.
        backend: an operator backend; None picks the fastest that serves the tensors.

    Raises:
        ValueError: for shapes, directions or weights that do not fit; TypeError for criteria not in floating point.
    """
    weights = [1.0] * len(higher_is_better) if weights is None else weights
    _check(criteria, higher_is_better, weights)
    function = backends.select("rank_candidates", backend, criteria)
    ranking: CandidateRanking = function(criteria, higher_is_better, weights)
    return ranking


def _check(criteria: Tensor, higher_is_better: Sequence[bool], weights: Sequence[float]) -> None:
    checks.check_tensors(criteria=criteria)
    if not criteria.is_floating_point():
        raise TypeError(f"criteria must be floating point, got {criteria.dtype}")
    if criteria.dim() < 2 or 0 in criteria.shape[-2:]:
        raise ValueError(f"criteria must be (...,K,R) with K >= 1 and R >= 1, got {tuple(criteria.shape)}")
    num_criteria = criteria.shape[-1]
    if len(higher_is_better) != num_criteria:
        raise ValueError(f"higher_is_better must have R = {num_criteria} directions, got {len(higher_is_better)}")
    if len(weights) != num_criteria:
        raise ValueError(f"weights must have R = {num_criteria} numbers, got {len(weights)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"weights must be finite and non-negative, got {list(weights)}")


# The definition.


def _reference(criteria: Tensor, higher_is_better: Sequence[bool], weights: Sequence[float]) -> CandidateRanking:
    values = torch.stack(
        [-column if higher else column for column, higher in zip(criteria.unbind(-1), higher_is_better, strict=True)],
        dim=-1,
    )  # (...,K,R), lower is better
    mine, other = values.unsqueeze(-2), values.unsqueeze(-3)  # (...,K,1,R) and (...,1,K,R)
    better = (other < mine) | (mine.isnan() & ~other.isnan())
    equal = (other == mine) | (mine.isnan() & other.isnan())  # counts the candidate itself
    ranks = better.sum(-2).double() + (equal.sum(-2).double() + 1.0) / 2.0

    columns = ranks.unbind(-1)
    weighted = (weight * column for weight, column in zip(weights, columns, strict=True))
    scores = sum(weighted, start=ranks.new_zeros(())).round(decimals=9)

    order = torch.arange(criteria.shape[-2], device=criteria.device).expand(scores.shape)
    for key in (*reversed(columns), scores):  # stable sorts from the last key to the first
        order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, stable=True))
    return CandidateRanking(ranks, scores, order, order[..., 0])


# The fused backends.


def _fused(
    operator: OpOverload, criteria: Tensor, higher_is_better: Sequence[bool], weights: Sequence[float]
) -> CandidateRanking:
    return CandidateRanking(*operator(criteria.detach(), higher_is_better, weights))


def _fake(criteria: Tensor, higher_is_better: Sequence[bool], weights: Sequence[float]) -> tuple[Tensor, ...]:
    candidates = criteria.shape[:-1]
    return (
        criteria.new_empty(criteria.shape, dtype=torch.float64),
        criteria.new_empty(candidates, dtype=torch.float64),
        criteria.new_empty(candidates, dtype=torch.int64),
        criteria.new_empty(candidates[:-1], dtype=torch.int64),
    )


def _vmap(
    operator: OpOverload,
    info: Any,
    in_dims: Any,
    criteria: Tensor,
    higher_is_better: Sequence[bool],
    weights: Sequence[float],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    results = operator(criteria.movedim(in_dims[0], 0), higher_is_better, weights)
    return results, (0,) * len(results)


fused.define(
    "rank_candidates",
    "rank_candidates",
    "(Tensor criteria, bool[] higher_is_better, float[] weights) "
    "-> (Tensor ranks, Tensor scores, Tensor order, Tensor winner)",
    _fake,
    _vmap,
)
backends.register("rank_candidates", "reference", _reference)
fused.register("rank_candidates", _fused)
