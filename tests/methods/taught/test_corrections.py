"""What the label corrects in the logits of teachers, against loops in float64."""

import math

import pytest
import torch
from torch import Tensor

from tfkd_fast.methods.taught.corrections import mix_label, mix_logits, swap_label

LEAD = (2, 6)  # candidates, batch
CLASSES = 5


def draw(seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Float64 logits (2,6,5) and labels (2,6)."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(*LEAD, CLASSES, generator=generator, dtype=torch.float64)
    return logits, torch.randint(CLASSES, LEAD, generator=generator)


def softened(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


@pytest.mark.parametrize(("share", "temperature"), [(0.1, 4.0), (0.6, 1.0)])
def test_the_label_is_mixed_into_the_probabilities(share: float, temperature: float) -> None:
    logits, labels = draw()
    result = (mix_label(logits, labels, share, temperature) / temperature).softmax(-1)
    for p, i in torch.cartesian_prod(torch.arange(LEAD[0]), torch.arange(LEAD[1])).tolist():
        expected = [(1 - share) * mass for mass in softened(logits[p, i].tolist(), temperature)]
        expected[int(labels[p, i])] += share
        assert result[p, i].tolist() == pytest.approx(expected, rel=1e-12)


def test_two_predictions_are_mixed_as_probabilities() -> None:
    first, second = draw(0)[0], draw(1)[0]
    result = (mix_logits(first, second, 0.3, 4.0) / 4.0).softmax(-1)
    for p, i in torch.cartesian_prod(torch.arange(LEAD[0]), torch.arange(LEAD[1])).tolist():
        both = zip(softened(first[p, i].tolist(), 4.0), softened(second[p, i].tolist(), 4.0), strict=True)
        assert result[p, i].tolist() == pytest.approx([0.7 * a + 0.3 * b for a, b in both], rel=1e-12)


def test_certain_predictions_stay_finite() -> None:
    """Of probabilities that float32 cannot hold."""
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 1e4, -1e4]])
    for result in (mix_label(logits, torch.tensor([0, 0]), 0.1, 1.0), mix_logits(logits, logits.flip(0), 0.5, 1.0)):
        assert result.isfinite().all()
    assert mix_label(logits, torch.tensor([0, 0]), 0.1, 1.0)[1].softmax(-1)[:2].tolist() == pytest.approx([0.1, 0.9])


def test_swapping_against_a_loop() -> None:
    logits, labels = draw()
    expected = logits.clone()
    for p, i in torch.cartesian_prod(torch.arange(LEAD[0]), torch.arange(LEAD[1])).tolist():
        row, label = logits[p, i].tolist(), int(labels[p, i])
        best = row.index(max(row))
        expected[p, i, label], expected[p, i, best] = row[best], row[label]
    assert torch.equal(swap_label(logits, labels), expected)
    assert torch.equal(expected.argmax(-1), labels)
    right = logits.argmax(-1) == labels
    assert 0 < right.sum() < right.numel()
    assert torch.equal(expected[right], logits[right])


def test_of_equal_logits_the_first_counts_as_the_largest() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0], [2.0, 2.0, 1.0]])
    assert torch.equal(swap_label(logits, torch.tensor([2, 0])), logits)
