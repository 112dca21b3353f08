"""From held-out scores to rewards and advantages (the rewards are our choice)."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tfkd_fast.steering.control.controller import DecisionOutcome


def standardize(values: Tensor) -> Tensor:
    """(n,) with mean 0 and population standard deviation 1; all zeros where the values are all equal."""
    centred = values - values.mean()
    deviation = centred.square().mean().sqrt()
    negligible = 1e-6 * values.abs().max()  # what rounding leaves of equal values
    return centred / deviation if deviation > negligible else torch.zeros_like(values)


def group_rewards(outcome: DecisionOutcome, top1_share: float) -> Tensor:
    """(P,) float64: standardised gains in top-1 and in calibrated NLL, mixed, among candidates of one parent.

    What hits all candidates alike, a drop of the learning rate above all, cancels.
    """
    gain_top1 = torch.tensor(outcome.top1, dtype=torch.float64) - outcome.parent_top1
    gain_nll = outcome.parent_nll - torch.tensor(outcome.nll, dtype=torch.float64)
    return top1_share * standardize(gain_top1) + (1.0 - top1_share) * standardize(gain_nll)


@dataclass
class RunningScale:
    """Exponential root mean square of a stream of gains, with Adam's correction of the start.

    Taken about zero rather than about the mean: no gain is the natural reference, the first gain already has a scale,
    and a scaled gain stays below 1/sqrt(1 - DECAY) = 3.2 whatever comes.
    """

    DECAY = 0.9

    mean_square: float = 0.0
    count: int = 0

    def normalize(self, gain: float) -> float:
        """Take in one gain and return it in units of the scale."""
        self.mean_square = self.DECAY * self.mean_square + (1.0 - self.DECAY) * gain**2
        self.count += 1
        scale = math.sqrt(self.mean_square / (1.0 - self.DECAY**self.count))
        return gain / scale if scale > 0.0 else 0.0


def single_reward(
    outcome: DecisionOutcome, top1_share: float, top1_scale: RunningScale, nll_scale: RunningScale
) -> float:
    """The same mixture for a single trajectory: each gain of the interval over its running scale."""
    gain_top1 = top1_scale.normalize(outcome.top1[0] - outcome.parent_top1)
    gain_nll = nll_scale.normalize(outcome.parent_nll - outcome.nll[0])
    return top1_share * gain_top1 + (1.0 - top1_share) * gain_nll


class Rewards:
    """What the candidates of each decision earn: in a group by comparison, alone by running scales, kept here."""

    def __init__(self, top1_share: float) -> None:
        """`top1_share`, 0..1, is that of the gain in top-1; the gain in calibrated NLL has the rest."""
        self._top1_share = top1_share
        self._top1_scale, self._nll_scale = RunningScale(), RunningScale()

    def compute(self, outcome: DecisionOutcome) -> Tensor | None:
        """(P,) float64; None for a single trajectory whose learning rate dropped: the jump cannot be told from a gain.

        Such a drop changes the size of the gains to come, so the scales begin anew.
        """
        if not outcome.comparable:
            self._top1_scale, self._nll_scale = RunningScale(), RunningScale()
        if len(outcome.top1) > 1:
            return group_rewards(outcome, self._top1_share)
        if not outcome.comparable:
            return None
        reward = single_reward(outcome, self._top1_share, self._top1_scale, self._nll_scale)
        return torch.tensor([reward], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"top1_scale": asdict(self._top1_scale), "nll_scale": asdict(self._nll_scale)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._top1_scale, self._nll_scale = RunningScale(**state["top1_scale"]), RunningScale(**state["nll_scale"])


def generalized_advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, continues: Tensor, discount: float, gae_lambda: float
) -> Tensor:
    """Generalized advantage estimation (Schulman et al., ICLR 2016, eq. 16) over a sequence cut into segments.

    Args:
        rewards, values, next_values: (n,); values of the state before and after each transition.
        continues: (n,) bool; whether the next transition starts where this one ended. The last entry is not read.

    Returns:
        (n,) advantages.
    """
    errors = rewards + discount * next_values - values
    advantages = errors.clone()
    for t in range(len(errors) - 2, -1, -1):
        if continues[t]:
            advantages[t] += discount * gae_lambda * advantages[t + 1]
    return advantages
