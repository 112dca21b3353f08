"""The superclass target: a true-class mass for each superclass, and the share of its siblings (our choice)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tfkd_fast.steering.targets.target import Target
from tfkd_fast.steering.targets.true_mass import TrueMassRange

Superclasses = Mapping[str, Sequence[int]]
"""Superclass name -> its classes; every class 0..C-1 is in exactly one superclass."""


class SuperclassTarget(Target):
    """A table from an action (u_1..u_G, s): u_g sets the true mass m of the classes of superclass g.

    The n siblings of a class (the other classes of its superclass) and the C-1-n remaining classes share 1-m by
    softmax(s + log n, log(C-1-n)), evenly within each of the two blocks; for n = 0 the latter have all of it.
    """

    family = "superclass"

    def __init__(self, mass_range: TrueMassRange, superclasses: Superclasses, num_classes: int) -> None:
        members = [label for labels in superclasses.values() for label in labels]
        if sorted(members) != list(range(num_classes)):
            raise ValueError(f"superclasses must hold each of the {num_classes} classes once, got {dict(superclasses)}")
        self._range = mass_range
        self._superclass = torch.empty(num_classes, dtype=torch.int64)
        for number, labels in enumerate(superclasses.values()):
            self._superclass[list(labels)] = number
        self._siblings = self._superclass.unsqueeze(1) == self._superclass
        self.action_names = (*(f"true mass of {name}" for name in superclasses), "siblings")

    def tables(self, actions: Tensor, similarity: Tensor) -> Tensor:
        actions = actions.to(similarity.dtype)
        true_mass = self._range.mass(actions[:, self._superclass.to(actions.device)])
        true_class = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
        logits = actions[:, -1].reshape(-1, 1, 1) * self._siblings.to(similarity)  # the logit of the rest is 0
        others = torch.softmax(logits.masked_fill(true_class, -torch.inf), dim=-1)
        return torch.diag_embed(true_mass) + (1.0 - true_mass).unsqueeze(-1) * others

    def action_for_true_mass(self, mass: float) -> Tensor:
        action = torch.full((self.action_size,), self._range.action(mass))
        action[-1] = 0.0
        return action
