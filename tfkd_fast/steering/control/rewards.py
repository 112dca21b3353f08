"""Rewards and advantages from held-out scores (the rewards are our choice)."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tfkd_fast.steering.control.controller import DecisionOutcome


def standardize(values: Tensor) -> Tensor:
    """Shift and scale values (n,) to mean 0 and population standard deviation 1; equal values give zeros."""
    centred, deviation = values - values.mean(), _deviation(values)
    return centred / deviation if deviation > 0 else torch.zeros_like(values)


def _deviation(values: Tensor) -> Tensor:
    """The population standard deviation () of values (n,), or 0 where it is what rounding leaves of equal values."""
    deviation = (values - values.mean()).square().mean().sqrt()
    return torch.where(deviation > 1e-6 * values.abs().max(), deviation, 0.0)


def group_rewards(outcome: DecisionOutcome, top1_share: float) -> Tensor:
    """Return rewards (P,) float64 of candidates of one parent: a mixture of standardised gains in top-1 and in NLL.

    Effects that all candidates share, such as a drop of the learning rate, cancel. A candidate that diverged, one of
    whose scores is not finite, gets the lowest reward, and the others are compared by their own scores (our choice).

    Args:
        outcome: scores of P >= 2 candidates and of their parent.
        top1_share: weight of the gain in top-1, 0..1; the gain in calibrated NLL has the rest.
    """
    gain_top1 = torch.tensor(outcome.top1, dtype=torch.float64) - outcome.parent_top1
    gain_nll = outcome.parent_nll - torch.tensor(outcome.nll, dtype=torch.float64)
    diverged = ~(gain_top1.isfinite() & gain_nll.isfinite())
    if diverged.any():
        gain_top1, gain_nll = _put_last(gain_top1, diverged), _put_last(gain_nll, diverged)
    return top1_share * standardize(gain_top1) + (1.0 - top1_share) * standardize(gain_nll)


def _put_last(gains: Tensor, diverged: Tensor) -> Tensor:
    """Gains (n,) with those of the `diverged` (n,) bool one standard deviation of the others below the lowest."""
    others = gains[~diverged]
    if not len(others):
        return torch.zeros_like(gains)
    return gains.masked_fill(diverged, float(others.min() - (_deviation(others) or 1.0)))


@dataclass
class RunningScale:
    """Exponential moving root mean square of a stream of gains, with Adam's bias correction.

    It is taken about zero rather than about the mean: zero is the natural reference of a gain, the first gain already
    has a scale, and a normalised gain never exceeds 1/sqrt(1 - DECAY) = 3.2.
    """

    DECAY = 0.9

    mean_square: float = 0.0
    """Exponential moving mean of the squared gains, not bias-corrected."""
    count: int = 0
    """Number of gains so far."""

    def normalize(self, gain: float) -> float:
        """Update the scale with one gain and return the gain in units of the scale; 0 if all gains were 0."""
        self.mean_square = self.DECAY * self.mean_square + (1.0 - self.DECAY) * gain**2
        self.count += 1
        scale = math.sqrt(self.mean_square / (1.0 - self.DECAY**self.count))
        return gain / scale if scale > 0.0 else 0.0


def single_reward(
    outcome: DecisionOutcome, top1_share: float, top1_scale: RunningScale, nll_scale: RunningScale
) -> float:
    """Return the reward of a single trajectory: the mixture of `group_rewards`, each gain over its running scale."""
    gain_top1 = top1_scale.normalize(outcome.top1[0] - outcome.parent_top1)
    gain_nll = nll_scale.normalize(outcome.parent_nll - outcome.nll[0])
    return top1_share * gain_top1 + (1.0 - top1_share) * gain_nll


class Rewards:
    """Rewards of the candidates of a decision: by comparison in a group, by running scales for a single candidate."""

    def __init__(self, top1_share: float) -> None:
        """Start with empty scales; `top1_share` in 0..1 is the weight of the gain in top-1 against that in NLL."""
        self._top1_share = top1_share
        self._top1_scale, self._nll_scale = RunningScale(), RunningScale()

    def compute(self, outcome: DecisionOutcome) -> Tensor | None:
        """Return rewards (P,) float64, or None for a single trajectory that cannot be rewarded: its learning rate
        dropped, or its scores are not finite.

        The jump of the scores at such a drop cannot be told from a gain. It also changes the size of later gains, so
        the scales start again.
        """
        if not outcome.comparable:
            self._top1_scale, self._nll_scale = RunningScale(), RunningScale()
        if len(outcome.top1) > 1:
            return group_rewards(outcome, self._top1_share)
        scores = outcome.top1[0], outcome.nll[0], outcome.parent_top1, outcome.parent_nll
        if not outcome.comparable or not all(map(math.isfinite, scores)):
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
    """Generalized advantage estimation (Schulman et al., ICLR 2016, eq. 16) over a sequence of segments.

    Args:
        rewards: (n,) reward of each transition.
        values, next_values: (n,) value of the state before and after each transition.
        continues: (n,) bool, whether the next transition starts where this one ended. The last entry is not read.
        discount: the discount factor gamma, 0..1.
        gae_lambda: the parameter lambda, 0..1.

    Returns:
        Advantages (n,) in the dtype of the values.
    """
    errors = rewards + discount * next_values - values
    advantages = errors.clone()
    for t in range(len(errors) - 2, -1, -1):
        if continues[t]:
            advantages[t] += discount * gae_lambda * advantages[t + 1]
    return advantages
