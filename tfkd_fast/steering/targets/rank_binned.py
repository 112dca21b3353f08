"""The rank-binned target: a controller sets the true-class mass and the mass of each bin of similarity ranks.

A free-form target is the idea of Jiang et al. (IEEE Access 12, 2024); this parameterisation is our choice. Its shape is
free (any bin may hold any mass, so that the mass need not fall with the rank), it differs between classes through their
ranks, and it has few enough numbers to be learned from tens of decisions.
"""

from itertools import pairwise

import torch
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.steering.targets.target import Target
from tfkd_fast.steering.targets.true_mass import TrueMassRange

COARSE_STARTS = (1, 2, 5, 17)
"""First ranks of the coarse bins."""


def bin_starts(bins: str, num_classes: int) -> list[int]:
    """Return the first rank of each bin of the ranks 1..C-1.

    "fine" bins double their width (1, 2, 3, 5, 9, ...), "coarse" bins are fixed (1, 2, 5, 17). For C = 100 these are 8
    and 4 bins, for C = 10 they are 5 and 3.
    """
    fine = [1] + [2**j + 1 for j in range(num_classes.bit_length())]
    return [start for start in (fine if bins == "fine" else COARSE_STARTS) if start < num_classes]


class RankBinnedTarget(Target):
    """A table from an action (u_0, u_1..u_J).

    u_0 sets the true mass m, and J bins of n_j ranks share 1-m by softmax(u_j + log n_j).
    """

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
