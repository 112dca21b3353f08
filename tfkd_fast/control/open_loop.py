"""Controllers that follow a plan, whatever comes of it."""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfkd_fast.control.controller import Controller, Decision, Feedback, Outcome, Progress
from tfkd_fast.errors import UserError
from tfkd_fast.targets import ActionSpace


class OpenLoopController(Controller):
    """The same action for every candidate; nothing is learned and nothing remembered."""

    learns = False
    role: str

    @abstractmethod
    def action(self, progress: Progress) -> Tensor:
        """The action (A,) float32 at a moment of the run."""

    def decide(self, progress: Progress, candidates: int) -> Decision:
        return Decision(self.action(progress).repeat(candidates, 1), (self.role,) * candidates)

    def learn(self, decision: Decision, outcome: Outcome, progress_after: Progress) -> Feedback:
        return Feedback(rewards=(), advantages=None, update=None)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class FixedController(OpenLoopController):
    """One action for the whole run: a fixed free-form target, or a target that takes no action."""

    role = "fixed"

    def __init__(self, action: tuple[float, ...], space: ActionSpace) -> None:
        if action and len(action) != space.action_size:
            raise UserError(
                f"controller.action has {len(action)} numbers but the {space.family} target takes "
                f"{space.action_size}: give as many, or none for the neutral action"
            )
        self._action = torch.tensor(action) if action else torch.zeros(space.action_size)

    def action(self, progress: Progress) -> Tensor:
        return self._action


class ScheduleController(OpenLoopController):
    """True-class mass along straight lines over the run, e.g. rising to the one-hot label (progressive)."""

    role = "schedule"

    def __init__(self, true_mass: tuple[float, ...], space: ActionSpace) -> None:
        for mass in true_mass:
            space.action_for_true_mass(mass)  # refuses now what it cannot give later
        self._space, self._true_mass = space, true_mass

    def action(self, progress: Progress) -> Tensor:
        knots = np.linspace(0.0, 1.0, len(self._true_mass))
        return self._space.action_for_true_mass(float(np.interp(progress.epoch_fraction, knots, self._true_mass)))
