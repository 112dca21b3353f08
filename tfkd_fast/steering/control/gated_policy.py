"""A policy of few numbers: neutral while the student does not memorise, then a course through three actions.

With the generalisation gap g (training less held-out top-1), how far the run is, t, as the observation has it, and the
least true mass m of the targets so far, the gate is open where

    g > threshold, and t < latest or m < `SOFTENED`: it was open before,

and the action is

    neutral                         where it is not,
    on its way from start to middle where it is and t < switch,
    on its way from middle to end   where it is and t > switch; the run ends there,

with smooth passages. A soft target helps a student that fits its training images closely and harms one that does not,
and it needs time at a high learning rate. A target that turns hard at once leaves a student that is sure of too much;
predictions of the student itself are worth more the better it is. What follows from that is learned, and not written
here. The form is our choice.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tfkd_fast.steering.control.observation import PROGRESS_ENTRIES
from tfkd_fast.steering.control.policy import GaussianPolicy
from tfkd_fast.steering.targets.true_mass import NEUTRAL_TRUE_MASS

TIME, GAP, LEAST_MASS = 0, 9, 13
"""Entries of the observation that a gated policy reads: how far the run is and the least true mass so far, both mapped
to -1..1, and the gap."""

GAP_SLOPE = 60.0
"""How sharp the passage at the threshold is: it takes about 0.01 of the gap."""

TIME_SLOPE, SOFTENED, MASS_SLOPE = 120.0, 0.75, 480.0
"""How sharp the passage at the latest moment is: it takes about 0.015 of the run; the least true mass by which a run
has certainly left the neutral target; and what each unit below the neutral mass adds to the passage, such that
`SOFTENED` outweighs the end of the run, and the label alone no early moment."""

COURSE_SLOPE, COURSE_GAIN = 0.8, 2.5
"""Two slopes of the way from one action to the next. With x of -1 at its beginning and 1 at its end it has the shape of
tanh(2.5 tanh(0.8 x)): 3 % are done at the beginning, 12, 50 and 88 % after each quarter, and 97 % at the end."""

SHORTEST_WAY = 0.02
"""Share of the run that each way takes at least."""

SHUT = 6.0
"""What closes a gate: tanh(-6) is -1 to 1e-5."""


@dataclass(frozen=True)
class GatedPolicy:
    """The numbers of a gated policy for actions of A numbers."""

    start: Tensor
    """(A,) float32: the action at the beginning of the run."""
    middle: Tensor
    """(A,) float32: the action at the switch."""
    end: Tensor
    """(A,) float32: the action at the end of the run."""
    switch: float
    """Share of the run at which the action is the middle one."""
    threshold: float
    """Generalisation gap, a fraction, below which the action is neutral."""
    latest: float | None = None
    """Share of the run from which on a neutral policy stays so; None is no limit."""

    def write_into(self, policy: GaussianPolicy) -> None:
        """Set the weights of a policy's mean so that it is this policy. The value of no other entry is read.

        Of the first hidden layer, units 0 and 1 say how far the two ways are, unit 2 whether the gap is wide, and unit
        3 whether it is not too late, as numbers of -1..1; of the second, units 0 and 1 are the ways where the gate is
        open and else -1, and unit 2 is the gate itself.
        """
        first, second = (policy.mean.get_submodule(f"hidden.{number}") for number in (0, 1))
        with torch.no_grad():
            for parameter in policy.mean.parameters():
                parameter.zero_()
            weight, bias = first.get_parameter("weight"), first.get_parameter("bias")
            for unit, (begin, finish) in enumerate(((0.0, self.switch), (self.switch, 1.0))):
                half = max(finish - begin, SHORTEST_WAY) / 2.0
                centre = begin + half if unit == 0 else finish - half
                weight[unit, TIME], bias[unit] = COURSE_SLOPE / (2.0 * half), COURSE_SLOPE * (0.5 - centre) / half
            weight[2, GAP], bias[2] = GAP_SLOPE, -GAP_SLOPE * self.threshold
            if self.latest is None:
                bias[3] = SHUT
            else:
                weight[3, TIME], weight[3, LEAST_MASS] = -TIME_SLOPE / 2.0, -MASS_SLOPE / 2.0
                bias[3] = TIME_SLOPE * (self.latest - 0.5) + MASS_SLOPE * (NEUTRAL_TRUE_MASS - 0.5)
            weight, bias = second.get_parameter("weight"), second.get_parameter("bias")
            for unit in range(2):
                weight[unit, unit], weight[unit, 2:4], bias[unit] = COURSE_GAIN, SHUT, -2.0 * SHUT
            weight[2, 2:4], bias[2] = SHUT, -SHUT
            # Of the second layer (-1, -1, -1) is neutral, and with r = tanh(2.5) (-r, -r, 1), (r, -r, 1) and (r, r, 1)
            # are start, middle and end.
            reach = math.tanh(COURSE_GAIN)
            ways = [(self.middle - self.start) / (2.0 * reach), (self.end - self.middle) / (2.0 * reach)]
            open_gate = (self.start + self.end) / 2.0
            output = policy.mean.output
            output.weight[:, 0], output.weight[:, 1] = ways
            output.weight[:, 2] = (open_gate - sum(ways)) / 2.0
            output.bias.copy_((open_gate + sum(ways)) / 2.0)


def observed_policy(action_size: int, generator: torch.Generator) -> GaussianPolicy:
    """A policy for actions of this size, into which a gated policy can be written; its deviation is 1."""
    return GaussianPolicy(PROGRESS_ENTRIES + action_size, action_size, 1.0, generator)
