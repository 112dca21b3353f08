"""Target mixtures: a class target and the student's own predictions, with shares and temperatures from an action.

The mixture is our extension of the class-level frame of Jiang et al. (IEEE Access 12, 2024).
"""

import math

import torch
from torch import Tensor

from tfkd_fast.steering.targets.settings import TargetSettings
from tfkd_fast.steering.targets.target import ActionSpace, Target


class TargetMixture(ActionSpace):
    """A class target mixed with K sources: an action is that of the class target, then a share and a temperature each.

    The shares of class target and sources are softmax(0, u_1 + b, ..., u_K + b), with b such that the neutral action
    gives every source `target.source_share`. A temperature is `target.source_temperature` times 2^(u/2), so that
    actions of magnitude `ACTION_LIMIT` = 4 give a quarter to four times of it (our choice).
    """

    def __init__(self, target: Target, settings: TargetSettings) -> None:
        self.target, self.sources = target, settings.sources
        self.family = target.family
        self.action_names = target.action_names + tuple(
            f"{source} {what}" for source in self.sources for what in ("share", "temperature")
        )
        self._bias = math.log(settings.source_share / (1.0 - len(self.sources) * settings.source_share))
        self._temperature = settings.source_temperature

    def class_actions(self, actions: Tensor) -> Tensor:
        """Return the part of actions (P,A) that steers the class target, (P,A-2K)."""
        return actions[:, : self.target.action_size]

    def shares(self, actions: Tensor) -> Tensor:
        """Return the shares (P,1+K) of the class target and of each source; rows sum to 1."""
        steered = actions[:, self.target.action_size :: 2] + self._bias
        return torch.cat([actions.new_zeros(len(actions), 1), steered], dim=1).softmax(dim=1)

    def temperatures(self, actions: Tensor) -> Tensor:
        """Return the temperatures (P,K) of the sources."""
        return self._temperature * torch.exp2(0.5 * actions[:, self.target.action_size + 1 :: 2])

    def action_for_true_mass(self, mass: float) -> Tensor:
        return torch.cat([self.target.action_for_true_mass(mass), torch.zeros(2 * len(self.sources))])
