"""A policy of few numbers: neutral while the student does not memorise, then one action, and another one at the end.

With the generalisation gap g (training less held-out top-1) and the share t of the run that has passed, the action is

    neutral                      where g < threshold,
    middle                       where g > threshold and t < switch,
    on its way to the end action where g > threshold and t > switch, which it reaches as the run ends,

with smooth passages. A soft target helps a student that fits its training images closely and does little for one that
does not, and it helps while the learning rate is high; a target that turns hard at once leaves a student that is sure
of too much. What follows from that is learned, and not written here. The form is our choice.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tfkd_fast.steering.control.observation import PROGRESS_ENTRIES
from tfkd_fast.steering.control.policy import GaussianPolicy

TIME, GAP = 0, 9
"""Entries of the observation that a gated policy reads: the share of the run, mapped to -1..1, and the gap."""

GAP_SLOPE = 60.0
"""How sharp the passage at the threshold is: it takes about 0.01 of the gap."""

COURSE_SLOPE, COURSE_GAIN = 0.8, 2.5
"""Two slopes of the course from the middle action to the end action. With x of -1 at the switch and 1 at the end of
the run it has the shape of tanh(2.5 tanh(0.8 x)): 3 % are done at the switch, 12, 50 and 88 % after each quarter of the
time that is left, and 97 % at the end."""

SHORTEST_COURSE = 0.02
"""Share of the run that the course takes at least."""

SHUT = 6.0
"""What closes a gate: tanh(-6) is -1 to 1e-5."""


@dataclass(frozen=True)
class GatedPolicy:
    """The numbers of a gated policy for actions of A numbers."""

    middle: Tensor
    """(A,) float32: the action before the switch."""
    end: Tensor
    """(A,) float32: the action at the end of the run."""
    switch: float
    """Share of the run from which on the action changes."""
    threshold: float
    """Generalisation gap, a fraction, below which the action is neutral."""

    def write_into(self, policy: GaussianPolicy) -> None:
        """Set the weights of a policy's mean so that it is this policy. The value of no other entry is read.

        Of the first hidden layer, unit 0 says how far the course is and unit 1 whether the gap is wide, as numbers of
        -1..1; of the second, unit 0 is the course where the gap is wide and else -1, and unit 1 is the gate itself.
        """
        first, second = (policy.mean.get_submodule(f"hidden.{number}") for number in (0, 1))
        half = max(1.0 - self.switch, SHORTEST_COURSE) / 2.0
        with torch.no_grad():
            for parameter in policy.mean.parameters():
                parameter.zero_()
            weight, bias = first.get_parameter("weight"), first.get_parameter("bias")
            weight[0, TIME], bias[0] = COURSE_SLOPE / (2.0 * half), COURSE_SLOPE * (half - 0.5) / half
            weight[1, GAP], bias[1] = GAP_SLOPE, -GAP_SLOPE * self.threshold
            weight, bias = second.get_parameter("weight"), second.get_parameter("bias")
            weight[0, 0], weight[0, 1], bias[0] = COURSE_GAIN, SHUT, -SHUT
            weight[1, 1] = SHUT
            # With h = (-1, -1) where the gap is narrow, (-reach, 1) before the course and (reach, 1) after it:
            reach = math.tanh(COURSE_GAIN)
            course = (self.end - self.middle) / (2.0 * reach)
            gate = ((self.middle + self.end) / 2.0 - course) / 2.0
            output = policy.mean.output
            output.weight[:, 0], output.weight[:, 1] = course, gate
            output.bias.copy_(course + gate)


def observed_policy(action_size: int, generator: torch.Generator) -> GaussianPolicy:
    """A policy for actions of this size, into which a gated policy can be written; its deviation is 1."""
    return GaussianPolicy(PROGRESS_ENTRIES + action_size, action_size, 1.0, generator)
