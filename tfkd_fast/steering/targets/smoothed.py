"""Targets with equal mass for all wrong classes: one-hot, label smoothing, and label smoothing under control.

Label smoothing here is that of Yuan et al. (CVPR 2020): the C-1 wrong classes share the mass eps. Szegedy et al. (CVPR
2016) share it among all C classes, which leaves the true class eps/C more.
"""

import torch
from torch import Tensor

from tfkd_fast.steering.targets.target import Target
from tfkd_fast.steering.targets.true_mass import TrueMassRange


def one_hot_table(num_classes: int) -> Tensor:
    """Return the table (C,C) float32 of one-hot targets, which make the loss cross-entropy."""
    return torch.eye(num_classes)


def smoothed_tables(true_mass: Tensor, num_classes: int) -> Tensor:
    """Return tables (P,C,C) with `true_mass` (P,) on the diagonal and the rest shared evenly within each row."""
    true_mass = true_mass.reshape(-1, 1, 1)
    true_class = torch.eye(num_classes, dtype=torch.bool, device=true_mass.device)
    return torch.where(true_class, true_mass, (1.0 - true_mass) / (num_classes - 1))


class ConstantTarget(Target):
    """A target without an action: one-hot (true mass 1) or label smoothing."""

    def __init__(self, family: str, true_mass: float) -> None:
        self.family = family
        self._true_mass = true_mass

    def tables(self, actions: Tensor, similarity: Tensor) -> Tensor:
        true_mass = similarity.new_full((actions.shape[0],), self._true_mass)
        return smoothed_tables(true_mass, similarity.shape[-1])


class ScalarTarget(Target):
    """Label smoothing whose true-class mass is the action: the control without a free shape (our choice)."""

    family = "scalar"
    action_names = ("true mass",)

    def __init__(self, mass_range: TrueMassRange) -> None:
        self._range = mass_range

    def tables(self, actions: Tensor, similarity: Tensor) -> Tensor:
        true_mass = self._range.mass(actions[:, 0].to(similarity.dtype))
        return smoothed_tables(true_mass, similarity.shape[-1])

    def action_for_true_mass(self, mass: float) -> Tensor:
        return torch.tensor([self._range.action(mass)])
