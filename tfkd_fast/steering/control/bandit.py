"""Bandits: controllers that choose among a few fixed actions and do not observe the state of training."""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from tfkd_fast.steering.control.controller import Controller, Decision, DecisionOutcome, Feedback, Progress
from tfkd_fast.steering.control.open_loop import check_length
from tfkd_fast.steering.control.rewards import Rewards
from tfkd_fast.steering.control.settings import BanditSettings, UCBSettings
from tfkd_fast.steering.targets import ActionSpace


class BanditController(Controller):
    """A bandit of K arms: each candidate plays a different one of the arms with the highest scores.

    Counts and sums of rewards are discounted at every decision that is rewarded, as in discounted UCB (Garivier &
    Moulines, ALT 2011), because the target that serves a student best changes while it learns.
    """

    def __init__(self, settings: BanditSettings, space: ActionSpace, seed: int) -> None:
        for number, arm in enumerate(settings.arms):
            check_length(f"controller.arms[{number}]", arm, space, "give as many")
        self._arms = torch.tensor(settings.arms) if settings.arms else axis_grid(space.action_size, settings.arm_step)
        self._forgetting = settings.forgetting
        self._generator = torch.Generator().manual_seed(seed)
        self._rewards = Rewards(settings.top1_share)
        self._counts = torch.zeros(len(self._arms), dtype=torch.float64)
        self._sums = torch.zeros_like(self._counts)

    @abstractmethod
    def scores(self, counts: Tensor, sums: Tensor, generator: torch.Generator) -> Tensor:
        """Return the scores (K,) float64 that the next arms are chosen by; the highest come first.

        Args:
            counts: (K,) float64, discounted numbers of plays.
            sums: (K,) float64, discounted sums of rewards.
            generator: the source of random numbers.
        """

    def decide(self, progress: Progress, candidates: int) -> Decision:
        scores = self.scores(self._counts, self._sums, self._generator)
        order = torch.randperm(len(scores), generator=self._generator)  # ties, as of untried arms, fall at random
        ranked = order[scores[order].argsort(descending=True, stable=True)]
        chosen = ranked[torch.arange(candidates) % len(ranked)]
        return Decision(self._arms[chosen], tuple(f"arm {arm}" for arm in chosen.tolist()))

    def learn(self, decision: Decision, outcome: DecisionOutcome, progress_after: Progress) -> Feedback:
        rewards = self._rewards.compute(outcome)
        if rewards is None:
            return Feedback((math.nan,), None, None)
        played = (decision.actions.unsqueeze(1) == self._arms).all(dim=-1).double()  # (P,K)
        if not played.any(dim=-1).all():
            raise ValueError("decision must come from this bandit: it holds an action that is no arm")
        self._counts = self._forgetting * self._counts + played.sum(dim=0)
        self._sums = self._forgetting * self._sums + rewards @ played
        means = self._sums / (1.0 + self._counts)  # shrunk towards 0, so that one lucky draw does not lead
        leader = int(means.argmax())
        figures = {"leader": float(leader), "leader_mean": float(means[leader]), "draws": float(self._counts.sum())}
        return Feedback(tuple(rewards.tolist()), None, figures)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self._generator.get_state(),
            "rewards": self._rewards.state_dict(),
            "counts": self._counts,
            "sums": self._sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        self._rewards.load_state_dict(state["rewards"])
        self._counts, self._sums = state["counts"], state["sums"]


class ThompsonController(BanditController):
    """Thompson sampling: one draw from the posterior of each arm's mean reward; the highest draws win.

    Source: Thompson (Biometrika 25, 1933); Russo et al. (A tutorial on Thompson sampling, 2018). The model is our
    choice: Gaussian rewards of variance 1 and the prior N(0, 1) for the mean of an arm, because rewards are
    standardised.
    """

    def scores(self, counts: Tensor, sums: Tensor, generator: torch.Generator) -> Tensor:
        precisions = 1.0 + counts
        noise = torch.randn(len(counts), generator=generator, dtype=torch.float64)
        return sums / precisions + noise * precisions.rsqrt()


class UCBController(BanditController):
    """Upper confidence bounds: the score of an arm is its mean reward plus c sqrt(log N / n) after n of N plays.

    An arm that was never played comes first. Source: UCB1 (Auer et al., Machine Learning 47, 2002), with discounted
    counts (Garivier & Moulines, ALT 2011); c is `controller.exploration`.
    """

    def __init__(self, settings: UCBSettings, space: ActionSpace, seed: int) -> None:
        super().__init__(settings, space, seed)
        self._exploration = settings.exploration

    def scores(self, counts: Tensor, sums: Tensor, generator: torch.Generator) -> Tensor:
        total = counts.sum().clamp(min=1.0)
        bounds = sums / counts + self._exploration * (total.log() / counts).sqrt()
        return torch.where(counts > 0.0, bounds, torch.inf)


def axis_grid(action_size: int, step: float) -> Tensor:
    """Return arms (1+2A,A) float32: the neutral action, then each number alone moved up and down by `step`."""
    axes = step * torch.eye(action_size)  # subtracted from 0 below, since a minus would leave -0.0 in logs
    return torch.cat([torch.zeros(1, action_size), torch.stack([axes, 0.0 - axes], dim=1).flatten(0, 1)])
