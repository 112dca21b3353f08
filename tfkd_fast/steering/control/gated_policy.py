"""A policy of few numbers: neutral while the student does not memorise, then one action, and another one at the end.

With the generalisation gap g (training less held-out top-1) and the share t of the run that has passed, the action is

    neutral    where g < threshold,
    middle     where g > threshold and t < switch,
    end        where g > threshold and t > switch,

with smooth passages. A soft target helps a student that fits its training images closely and does little for one that
does not, and it helps while the learning rate is high: what follows from that is learned, and not written here. The
form is our choice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tfkd_fast.steering.control.observation import PROGRESS_ENTRIES
from tfkd_fast.steering.control.policy import GaussianPolicy

TIME, GAP = 0, 9
"""Entries of the observation that a gated policy reads: the share of the run, mapped to -1..1, and the gap."""

TIME_SLOPE, GAP_SLOPE = 150.0, 30.0
"""How sharp a passage is: it takes about 2 % of the run, or 0.07 of the gap."""

SHUT = 6.0
"""What closes a gate: tanh(-6) is -1 to 1e-5."""


@dataclass(frozen=True)
class GatedPolicy:
    """The numbers of a gated policy for actions of A numbers."""

    middle: Tensor
    """(A,) float32: the action before the switch."""
    end: Tensor
    """(A,) float32: the action after the switch."""
    switch: float
    """Share of the run at which the action changes."""
    threshold: float
    """Generalisation gap, a fraction, below which the action is neutral."""

    def write_into(self, policy: GaussianPolicy) -> None:
        """Set the weights of a policy's mean so that it is this policy. The value of no other entry is read.

        Of the first hidden layer, unit 0 says whether the switch has passed and unit 1 whether the gap is wide, as
        numbers of -1..1; of the second, units 0 and 1 are 1 where the middle and the end action hold, and else -1.
        """
        first, second = (policy.mean.get_submodule(f"hidden.{number}") for number in (0, 1))
        with torch.no_grad():
            for parameter in policy.mean.parameters():
                parameter.zero_()
            weight, bias = first.get_parameter("weight"), first.get_parameter("bias")
            weight[0, TIME], bias[0] = TIME_SLOPE, -TIME_SLOPE * (2.0 * self.switch - 1.0)
            weight[1, GAP], bias[1] = GAP_SLOPE, -GAP_SLOPE * self.threshold
            weight, bias = second.get_parameter("weight"), second.get_parameter("bias")
            weight[0, 0], weight[1, 0] = -SHUT, SHUT
            weight[:2, 1] = 0.5 * SHUT
            bias[:2] = -SHUT
            output = policy.mean.output
            output.weight[:, 0], output.weight[:, 1] = self.middle / 2, self.end / 2
            output.bias.copy_((self.middle + self.end) / 2)


def observed_policy(action_size: int, generator: torch.Generator) -> GaussianPolicy:
    """A policy for actions of this size, into which a gated policy can be written; its deviation is 1."""
    return GaussianPolicy(PROGRESS_ENTRIES + action_size, action_size, 1.0, generator)
