"""Hypergradient: a controller that descends the gradient of the held-out loss with respect to the action."""

import copy
import math
from typing import Any

import torch
from torch import nn

from tfkd_fast.steering.control.controller import (
    ACTION_LIMIT,
    Controller,
    Decision,
    DecisionOutcome,
    Feedback,
    Progress,
)
from tfkd_fast.steering.control.settings import HypergradientSettings
from tfkd_fast.steering.targets import ActionSpace


class HypergradientController(Controller):
    """One action for all candidates, updated by Adam to lower the held-out loss after one look-ahead step.

    Source: the gradient through a training step is that of learning to teach (Wu et al., NeurIPS 2018: L2T-DLF),
    through one step only as in MetaDistil (Zhou et al., ACL 2022). There is no network: the action itself is learned.
    """

    def __init__(self, settings: HypergradientSettings, space: ActionSpace) -> None:
        self._action = nn.Parameter(torch.zeros(space.action_size))
        self._optimizer = torch.optim.Adam([self._action], settings.hypergradient_rate)

    def decide(self, progress: Progress, candidates: int) -> Decision:
        return Decision(self._action.detach().repeat(candidates, 1), ("hypergradient",) * candidates)

    def learn(self, decision: Decision, outcome: DecisionOutcome, progress_after: Progress) -> Feedback:
        """Take one step of Adam along `outcome.action_gradient`; rewards are not used.

        A gradient that is not finite, as of a student that diverged, is skipped.

        Raises:
            ValueError: the outcome has no gradient.
        """
        if outcome.action_gradient is None:
            raise ValueError("the hypergradient controller learns from outcome.action_gradient, which is None")
        gradient = outcome.action_gradient.to(self._action)
        is_finite = bool(gradient.isfinite().all())
        if is_finite:
            self._action.grad = gradient
            self._optimizer.step()
            with torch.no_grad():
                self._action.clamp_(-ACTION_LIMIT, ACTION_LIMIT)
        figures = {"gradient_norm": gradient.norm().item(), "skipped": float(not is_finite)}
        return Feedback((math.nan,) * len(decision.actions), None, figures)

    def state_dict(self) -> dict[str, Any]:
        return {"action": self._action.detach().clone(), "optimizer": copy.deepcopy(self._optimizer.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self._action.copy_(state["action"])
        self._optimizer.load_state_dict(state["optimizer"])
