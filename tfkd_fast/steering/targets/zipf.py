"""Mass over the wrong classes of a sample that falls with their rank, as word counts do (Zipf's law)."""

import torch
from torch import Tensor


def zipf_targets(scores: Tensor, labels: Tensor, power: float = 1.0) -> Tensor:
    """Distributions (...,B,C) proportional to 1 / rank^power over the classes that are not the label, which gets 0.

    Liang et al., ECCV 2022. The ranks are 1..C by descending score, the label's among them, and equal scores share the
    smallest of theirs: both as in the authors' code (megvii-research/zipfls, losses.py). No gradient.

    Args:
        scores: (...,B,C) floating point, C >= 2.
        labels: (...,B) int64.
    """
    falling = -scores.detach()
    better = torch.searchsorted(falling.sort(dim=-1).values, falling.contiguous())  # classes of a higher score
    masses = (1.0 + better).to(scores.dtype).pow(-power).scatter(-1, labels.unsqueeze(-1), 0.0)
    return masses / masses.sum(-1, keepdim=True)
