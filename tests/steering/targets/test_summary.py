"""Summaries of target tables against loops."""

import math

import numpy as np
import pytest
import torch

from tests.support.tables import make_table
from tfkd_fast.steering.targets import TargetSettings, build_target, describe, one_hot_table


def test_summary_against_a_loop() -> None:
    candidates, num_classes = 2, 6
    generator = torch.Generator().manual_seed(0)
    tables = torch.rand(candidates, num_classes, num_classes, generator=generator).softmax(-1)
    similarity = torch.rand(candidates, num_classes, num_classes, generator=generator)
    for q, s, summary in zip(tables.numpy(), similarity.numpy(), describe(tables, similarity), strict=True):
        by_rank = np.zeros(num_classes)
        for label in range(num_classes):
            others = sorted((c for c in range(num_classes) if c != label), key=lambda c: -s[label, c])
            by_rank += q[label, [label, *others]] / num_classes
        assert summary.mass_by_rank == pytest.approx(by_rank, rel=1e-5)
        assert summary.true_mass == pytest.approx(np.diag(q).mean(), rel=1e-5)
        assert summary.divergence == pytest.approx(-np.log(np.diag(q)).mean(), rel=1e-5)


def test_equal_similarities_rank_by_class_index() -> None:
    table = torch.tensor([[[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.2, 0.1, 0.7]]])
    (summary,) = describe(table, torch.full((1, 3, 3), 1 / 3))
    assert summary.mass_by_rank == pytest.approx([0.7, 0.2, 0.1])


def test_ranks_agree_with_those_of_the_rank_binned_target() -> None:
    """Summed over its bins, a rank-binned table's masses by rank are flat within each bin."""
    target = build_target(make_table(TargetSettings), 10)
    similarity = torch.rand(1, 10, 10, generator=torch.Generator().manual_seed(3))
    (summary,) = describe(target.tables(torch.tensor([[0.0, 1.0, -1.0, 0.5]]), similarity), similarity)
    masses = summary.mass_by_rank
    weights = np.exp([1.0, -1.0, 0.5]) * [1, 3, 5]
    share = 0.1 * weights / weights.sum()
    expected = [0.9, share[0], *[share[1] / 3] * 3, *[share[2] / 5] * 5]
    assert masses == pytest.approx(expected, rel=1e-5)


def test_one_hot_diverges_by_nothing() -> None:
    (summary,) = describe(one_hot_table(4).unsqueeze(0), torch.full((1, 4, 4), 0.25))
    assert summary.true_mass == 1.0
    assert math.copysign(1.0, summary.divergence) == 1.0  # no minus zero in the logs
    assert summary.divergence == 0.0
    assert summary.mass_by_rank == [1.0, 0.0, 0.0, 0.0]
