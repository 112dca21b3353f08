"""Corrections of the logits of teachers by the label: baselines of professors that cost nothing.

All logits are (...,C), without gradient. Where the label is mixed in, it is mixed into probabilities at the temperature
at which the student learns from it: the result is logits whose softmax at that temperature is the mixture.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Correction = Callable[[Tensor, Tensor], Tensor]
"""A function of logits (...,C) and labels (...) int64 that returns corrected logits (...,C)."""


def keep_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits unchanged."""
    return logits


def mix_label(logits: Tensor, labels: Tensor, share: float, temperature: float) -> Tensor:
    """Logits of (1-share) softmax(z/T) + share e_y, for labels (...) int64; 0 < share < 1."""
    label = torch.full_like(logits, -math.inf).scatter(-1, labels.unsqueeze(-1), 0.0)
    return mix_logits(logits, temperature * label, share, temperature)


def mix_logits(first: Tensor, second: Tensor, share: float, temperature: float) -> Tensor:
    """Logits of (1-share) softmax(first/T) + share softmax(second/T); 0 < share < 1."""
    return temperature * torch.logaddexp(
        (first / temperature).log_softmax(-1) + math.log1p(-share),
        (second / temperature).log_softmax(-1) + math.log(share),
    )


def swap_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Where the largest logit is not that of the label (...) int64, the two are exchanged; of equal ones, the first is
    the largest.

    Source: the "knowledge adjustment" of Wen, Lai, Qian, Preparing Lessons, arXiv 1911.07471.
    """
    top, best = logits.max(dim=-1, keepdim=True)
    label = labels.unsqueeze(-1)
    return logits.scatter(-1, best, logits.gather(-1, label)).scatter(-1, label, top)
