"""Masses by rank, against scipy's ranks."""

import pytest
import torch
from scipy.stats import rankdata

from tfkd_fast.steering.targets.zipf import zipf_targets


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("values", [3, 1000])  # few different scores: many ties, as of votes
def test_masses_fall_with_the_rank_and_the_label_has_none(values: int, power: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(values, (2, 6, 10), generator=generator).double() - 1.0
    labels = torch.randint(10, (2, 6), generator=generator)
    targets = zipf_targets(scores, labels, power)
    assert targets.dtype == torch.float64
    for candidate in range(2):
        for sample in range(6):
            label = int(labels[candidate, sample])
            ranks = rankdata([-score for score in scores[candidate, sample].tolist()], method="min")
            masses = [0.0 if c == label else 1 / rank**power for c, rank in enumerate(ranks)]
            expected = [mass / sum(masses) for mass in masses]
            assert targets[candidate, sample].tolist() == pytest.approx(expected, rel=1e-12)


def test_the_label_keeps_its_rank() -> None:
    """It is best here, and the others have the ranks 2, 3, 3: masses in proportion to 3 : 2 : 2."""
    targets = zipf_targets(torch.tensor([[5.0, 1.0, 1.0, 2.0]]), torch.tensor([0]))
    torch.testing.assert_close(targets, torch.tensor([[0.0, 2 / 7, 2 / 7, 3 / 7]]))


def test_no_gradient_flows_to_the_scores() -> None:
    scores = torch.randn(1, 4, requires_grad=True)
    assert not zipf_targets(scores, torch.tensor([1])).requires_grad


def test_of_two_classes_the_wrong_one_has_all() -> None:
    targets = zipf_targets(torch.tensor([[0.0, 7.0], [7.0, 0.0]]), torch.tensor([0, 0]))
    assert targets.tolist() == [[0.0, 1.0], [0.0, 1.0]]
