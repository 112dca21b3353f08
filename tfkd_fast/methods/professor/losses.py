"""The losses of a professor: accuracy, the teacher's correlations between classes, and two discriminators.

The formulas are our choice; the aims are those of Bang, Lee, Shim (Information Sciences 576, 2021). Losses are means
over a batch, ().
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tfkd_fast.ops import losses


def correlation_loss(logits: Tensor, labels: Tensor, others: Tensor, temperature: float) -> Tensor:
    """KL(others || the part of softmax(z/T) that is not the label's, renormalised).

    logits z (B,C), labels (B,), others (B,C): a distribution over the classes other than the label, or all zero, which
    adds nothing.
    """
    return losses.kl_divergence(others, _mask_label(logits / temperature, labels)).mean()


def other_classes(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The distribution (B,C) softmax(z/T) with 0 at the label, renormalised."""
    return _mask_label(logits / temperature, labels).softmax(-1)


def _mask_label(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(-1, labels.unsqueeze(-1), -math.inf)


class Prototypes:
    """Class by class, the mean prediction at temperature T of samples that a teacher gets right."""

    def __init__(self, num_classes: int, temperature: float, device: torch.device) -> None:
        self._temperature = temperature
        self._sums = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add the predictions of a batch, given as logits (B,C), for labels (B,) int64."""
        right = (logits.argmax(-1) == labels).unsqueeze(1)
        self._sums.index_add_(0, labels, (logits.double() / self._temperature).softmax(-1) * right)

    def others(self) -> Tensor:
        """(C,C) float32: row y without its class y, renormalised; all zero for a class that the teacher never got
        right."""
        sums = self._sums.clone().fill_diagonal_(0.0)
        totals = sums.sum(1, keepdim=True)
        return torch.where(totals > 0.0, sums / totals, 0.0).float()


def discriminator_loss(real: Tensor, fake: Tensor, counts: Tensor | None = None) -> Tensor:
    """Hinge loss of scores (B,) for real and for fake vectors; `counts` (B,) bool: which of the real ones are.

    Source: Lim, Ye, Geometric GAN, arXiv 1705.02894.
    """
    hinge = F.relu(1.0 - real)
    if counts is not None:
        hinge = hinge * counts * (len(counts) / counts.sum().clamp(min=1))
    return hinge.mean() + F.relu(1.0 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The mean of -s over the scores s (B,) that a discriminator gives to the vectors of the generator."""
    return -fake.mean()
