"""Summaries of target tables: a few numbers for logs and plots."""

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_RISE = 1e-6
"""Nats by which a divergence must grow from one decision to the next to count as a rise: more than rounding."""


@dataclass(frozen=True)
class TargetSummary:
    """Summary of one candidate's table q."""

    true_mass: float
    """Mean over the classes y of q(y|y)."""
    divergence: float
    """Mean over y of KL(one-hot || q(.|y)) = -log q(y|y), in nats: 0 for the one-hot target."""
    mass_by_rank: list[float]
    """C means over y: the mass of the true class, then of the class of each similarity rank, most similar first."""


def describe(tables: Tensor, similarity: Tensor) -> list[TargetSummary]:
    """Summarise tables (P,C,C) under class similarities (P,C,C); equal similarities rank by class index."""
    true_class = torch.eye(tables.shape[-1], dtype=torch.bool, device=tables.device)
    true_class_first = similarity.masked_fill(true_class, torch.inf)
    order = true_class_first.argsort(dim=-1, descending=True, stable=True)
    mass_by_rank = tables.gather(-1, order).mean(dim=-2)
    divergence = tables.diagonal(dim1=-2, dim2=-1).reciprocal().log().mean(dim=-1)
    return [
        TargetSummary(masses[0], nats, masses)
        for nats, masses in zip(divergence.tolist(), mass_by_rank.tolist(), strict=True)
    ]
