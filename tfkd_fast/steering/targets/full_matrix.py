"""The full-matrix target: C x C logits as a linear combination of a few fixed directions (our choice)."""

import torch
from torch import Tensor

from tfkd_fast.steering.targets.target import Target
from tfkd_fast.steering.targets.true_mass import TrueMassRange

NUM_DIRECTIONS = 16
"""Number of directions, if C(C-1) is not smaller."""

SEED = 0
"""Seed of the directions: they are the same in every run, so that actions of several runs can be compared."""


def logit_directions(num_classes: int) -> Tensor:
    """Return orthonormal matrices (D,C,C) float64 whose rows have mean zero, D = min(16, C(C-1)).

    The first one is the diagonal that all classes share, so that one number moves every true-class mass, as in the
    other families; random directions alone hardly reach it. All following ones are random.
    """
    count = min(NUM_DIRECTIONS, num_classes * (num_classes - 1))
    generator = torch.Generator().manual_seed(SEED)
    raw = torch.randn(count, num_classes, num_classes, generator=generator, dtype=torch.float64)
    raw[0] = torch.eye(num_classes)
    raw -= raw.mean(dim=-1, keepdim=True)
    basis, triangle = torch.linalg.qr(raw.flatten(1).T)
    directions: Tensor = (basis * triangle.diagonal().sign()).T  # QR may turn a direction round: turn it back
    return directions.reshape(raw.shape)


class FullMatrixTarget(Target):
    """Logits L = sum_k u_k s_k E_k: the true mass of row y is a sigmoid of L[y,y], the rest a softmax of the others.

    The scales s_k are such that one unit of action moves the diagonal by 1 (first direction), or the entries by 1 in
    the root mean square (other directions).
    """

    family = "full-matrix"

    def __init__(self, mass_range: TrueMassRange, num_classes: int) -> None:
        self._range = mass_range
        directions = logit_directions(num_classes)
        scales = torch.full((len(directions), 1, 1), float(num_classes), dtype=directions.dtype)
        scales[0] = 1.0 / directions[0, 0, 0]
        self._directions = scales * directions
        self.action_names = tuple(f"direction {k}" for k in range(len(directions)))

    def tables(self, actions: Tensor, similarity: Tensor) -> Tensor:
        logits = torch.einsum("pk,kyc->pyc", actions.to(similarity.dtype), self._directions.to(similarity))
        true_mass = self._range.mass(logits.diagonal(dim1=-2, dim2=-1))
        true_class = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
        others = torch.softmax(logits.masked_fill(true_class, -torch.inf), dim=-1)
        return torch.diag_embed(true_mass) + (1.0 - true_mass).unsqueeze(-1) * others

    def action_for_true_mass(self, mass: float) -> Tensor:
        action = torch.zeros(self.action_size)
        action[0] = self._range.action(mass)
        return action
