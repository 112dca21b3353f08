"""The true-class mass as a function of one unbounded number."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tfkd_fast.errors import UserError

NEUTRAL_TRUE_MASS = 0.9
"""True-class mass of the neutral action: label smoothing 0.1."""

ENDS = 1e-6
"""Clamp of the inverse sigmoid: masses within 1e-6 of the range's width of a bound map to a finite action."""


@dataclass(frozen=True)
class TrueMassRange:
    """A sigmoid onto (low, high), shifted so that 0 gives the neutral mass (our choice)."""

    low: float
    """Mass at an action of minus infinity."""
    high: float
    """Mass at an action of plus infinity."""

    def mass(self, action: Tensor) -> Tensor:
        """Return the true-class mass of each entry of `action`, in its shape and dtype."""
        shift = _logit(self._share(NEUTRAL_TRUE_MASS))
        return self.low + (self.high - self.low) * torch.sigmoid(action + shift)

    def action(self, mass: float) -> float:
        """Return the action of a mass, the inverse of `mass`; at the bounds it is exact to one millionth of the range.

        Raises:
            UserError: the mass lies outside the range.
        """
        if not self.low <= mass <= self.high:
            raise UserError(
                f"true-class mass {mass:g} lies outside target.true_mass_min = {self.low:g} to "
                f"target.true_mass_max = {self.high:g}: choose one inside, or widen the range"
            )
        share = min(max(self._share(mass), ENDS), 1.0 - ENDS)
        return _logit(share) - _logit(self._share(NEUTRAL_TRUE_MASS))

    def _share(self, mass: float) -> float:
        return (mass - self.low) / (self.high - self.low)


def _logit(share: float) -> float:
    return math.log(share / (1.0 - share))
