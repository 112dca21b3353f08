"""Triton kernels of `tfkd_fast.ops.rank_candidates`: ranks of candidates, their scores and their order.

Everything is counted: a candidate's rank from how many are better and how many are equal, and its place in the order
from how many come before it. That is K^2 comparisons a criterion, from the caches; populations are small.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import device_values, loss_dtypes, on_device

CANDIDATES, OTHERS = 64, 32  # compared with each other at a time: 16 comparisons a thread in 4 warps


@triton.jit
def _round_to_9_decimals(value: tl.tensor) -> tl.tensor:
    """Round a non-negative value to 9 decimals, as torch.round(decimals=9) does.

    Numbers of 2^52 and above have no digits after the point in float64, so adding 2^52 rounds to an integer.
    """
    scaled = value * 1e9
    no_digits = 4503599627370496.0
    return tl.where(scaled < no_digits, scaled + no_digits - no_digits, scaled) / 1e9


@triton.jit(do_not_specialize=["candidates", "criteria"])
def _rank(
    values: tl.tensor, signs: tl.tensor, weights: tl.tensor, ranks: tl.tensor, scores: tl.tensor, candidates: tl.tensor,
    criteria: tl.tensor,
    T: tl.constexpr, CANDIDATES: tl.constexpr, OTHERS: tl.constexpr,
) -> None:  # fmt: skip
    """Write the ranks and scores of CANDIDATES candidates of a population."""
    parts = tl.cdiv(candidates, CANDIDATES)
    base = (tl.program_id(0) // parts).to(tl.int64) * candidates
    k = tl.program_id(0) % parts * CANDIDATES + tl.arange(0, CANDIDATES)
    present = k < candidates
    score = tl.zeros((CANDIDATES,), tl.float64)
    for r in range(criteria):
        sign = tl.load(signs + r).to(T)  # lower is better
        own = (tl.load(values + (base + k) * criteria + r, mask=present, other=0.0).to(T) * sign)[:, None]
        better = tl.zeros((CANDIDATES,), tl.int32)
        equal = tl.zeros((CANDIDATES,), tl.int32)
        for start in range(0, candidates, OTHERS):
            j = start + tl.arange(0, OTHERS)
            inside = (j < candidates)[None, :]
            other = (tl.load(values + (base + j) * criteria + r, mask=j < candidates, other=0.0).to(T) * sign)[None, :]
            is_better = (other < own) | ((own != own) & (other == other))
            is_equal = (other == own) | ((own != own) & (other != other))
            better += tl.sum((is_better & inside).to(tl.int32), 1)
            equal += tl.sum((is_equal & inside).to(tl.int32), 1)
        rank = better.to(tl.float64) + (equal + 1).to(tl.float64) * 0.5
        tl.store(ranks + (base + k) * criteria + r, rank, mask=present)
        score += tl.load(weights + r) * rank
    tl.store(scores + base + k, _round_to_9_decimals(score), mask=present)


@triton.jit(do_not_specialize=["candidates", "criteria"])
def _order(
    ranks: tl.tensor, scores: tl.tensor, order: tl.tensor, winner: tl.tensor, candidates: tl.tensor,
    criteria: tl.tensor, CANDIDATES: tl.constexpr, OTHERS: tl.constexpr,
) -> None:  # fmt: skip
    """Write the positions of CANDIDATES candidates in the order: by score, then by each rank in turn, then by index."""
    parts = tl.cdiv(candidates, CANDIDATES)
    population = (tl.program_id(0) // parts).to(tl.int64)
    base = population * candidates
    k = tl.program_id(0) % parts * CANDIDATES + tl.arange(0, CANDIDATES)
    present = k < candidates
    own_score = tl.load(scores + base + k, mask=present, other=0.0)[:, None]
    place = tl.zeros((CANDIDATES,), tl.int32)
    for start in range(0, candidates, OTHERS):
        j = start + tl.arange(0, OTHERS)
        inside = j < candidates
        other_score = tl.load(scores + base + j, mask=inside, other=0.0)[None, :]
        before = other_score < own_score
        equal = other_score == own_score
        for r in range(criteria):
            own = tl.load(ranks + (base + k) * criteria + r, mask=present, other=0.0)[:, None]
            other = tl.load(ranks + (base + j) * criteria + r, mask=inside, other=0.0)[None, :]
            before = before | (equal & (other < own))
            equal = equal & (other == own)
        before = before | (equal & (j[None, :] < k[:, None]))
        place += tl.sum((before & inside[None, :]).to(tl.int32), 1)
    tl.store(order + base + place, k.to(tl.int64), mask=present)
    tl.store(winner + population + place * 0, k.to(tl.int64), mask=present & (place == 0))


def rank_candidates(
    criteria: Tensor, higher_is_better: list[bool], weights: list[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute ranks, scores, order and winner of `tfkd_fast.ops.rank_candidates`."""
    criteria = criteria.contiguous()
    candidates, count = criteria.shape[-2:]
    ranks = criteria.new_empty(criteria.shape, dtype=torch.float64)
    scores = criteria.new_empty(criteria.shape[:-1], dtype=torch.float64)
    order = criteria.new_empty(criteria.shape[:-1], dtype=torch.int64)
    winner = criteria.new_empty(criteria.shape[:-2], dtype=torch.int64)
    if criteria.numel() == 0:
        return ranks, scores, order, winner
    programs = (winner.numel() * triton.cdiv(candidates, CANDIDATES),)
    with on_device(criteria):
        signs = [-1.0 if higher else 1.0 for higher in higher_is_better]
        settings = device_values([*signs, *weights], criteria, torch.float64)
        # Without fusion: each product of a weight and a rank is rounded, as in the definition.
        _rank[programs](
            criteria, settings, settings[count:], ranks, scores, candidates, count,
            T=loss_dtypes(criteria)[1], CANDIDATES=CANDIDATES, OTHERS=OTHERS, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        _order[programs](
            ranks, scores, order, winner, candidates, count, CANDIDATES=CANDIDATES, OTHERS=OTHERS, num_warps=4
        )
    return ranks, scores, order, winner
