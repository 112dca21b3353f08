"""The free-form target: the controller sets the true-class mass and how the rest falls over similarity ranks.

That the target is free-form is the idea of Jiang et al. (IEEE Access 12, 2024); this parameterisation is our choice.
It is free in shape (any bin may hold any mass, so the shape need not fall with the rank), differs between classes
through their ranks, and is small enough to be learned from tens of decisions.
"""

from itertools import pairwise

import torch
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.steering.targets.target import Target
from tfkd_fast.steering.targets.true_mass import TrueMassRange

COARSE_STARTS = (1, 2, 5, 17)


def bin_starts(bins: str, num_classes: int) -> list[int]:
    """First rank of each bin of the ranks 1..C-1: "fine" doubles the width (1, 2, 3, 5, 9, ...), "coarse" is cut by
    hand (1, 2, 5, 17). For C = 100 that is 8 and 4 bins, for C = 10 it is 5 and 3."""
    fine = [1] + [2**j + 1 for j in range(num_classes.bit_length())]
    return [start for start in (fine if bins == "fine" else COARSE_STARTS) if start < num_classes]


class RankBinnedTarget(Target):
    """Action (u_0, u_1..u_J): u_0 sets the true mass m, and bins of n_j ranks share 1-m by softmax(u_j + log n_j)."""

    family = "rank-binned"
    uses_similarity = True

    def __init__(self, mass_range: TrueMassRange, bins: str, num_classes: int) -> None:
        self._range = mass_range
        self._starts = bin_starts(bins, num_classes)
        self._sizes = [float(end - start) for start, end in pairwise([*self._starts, num_classes])]
        self.action_names = ("true mass", *(f"rank {start}" for start in self._starts))

    def tables(self, actions: Tensor, similarity: Tensor) -> Tensor:
        actions = actions.to(similarity.dtype)
        true_mass = self._range.mass(actions[:, 0])
        bin_masses = torch.softmax(actions[:, 1:] + actions.new_tensor(self._sizes).log(), dim=-1)
        return ops.rank_binned_targets(similarity, true_mass, bin_masses, self._starts)

    def action_for_true_mass(self, mass: float) -> Tensor:
        action = torch.zeros(self.action_size)
        action[0] = self._range.action(mass)
        return action
