"""Zipf targets: the mass of a wrong class falls with its rank as the frequency of a word does (Zipf's law)."""

import torch
from torch import Tensor


def zipf_targets(scores: Tensor, labels: Tensor, power: float = 1.0) -> Tensor:
    """Return distributions proportional to 1 / rank^power over the wrong classes of each sample; the label gets 0.

    Ranks are 1..C by descending score, including that of the label, and equal scores share the smallest of their ranks:
    both as in the authors' code (megvii-research/zipfls, losses.py). Source: Liang et al., ECCV 2022. No gradient.

    Args:
        scores: (...,B,C) floating point, C >= 2.
        labels: (...,B) int64.
        power: exponent of the rank.

    Returns:
        (...,B,C) in the dtype of the scores.
    """
    falling = -scores.detach()
    better = torch.searchsorted(falling.sort(dim=-1).values, falling.contiguous())  # classes of a higher score
    masses = (1.0 + better).to(scores.dtype).pow(-power).scatter(-1, labels.unsqueeze(-1), 0.0)
    return masses / masses.sum(-1, keepdim=True)
