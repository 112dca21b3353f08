"""Open-loop controllers: their actions depend on the share of the run that has passed, not on its outcomes."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.steering.control.controller import Controller, Decision, DecisionOutcome, Feedback, Progress
from tfkd_fast.steering.control.settings import RecordedAction
from tfkd_fast.steering.targets import ActionSpace


def check_length(what: str, action: Sequence[float], space: ActionSpace, remedy: str) -> None:
    """Raise UserError unless `action` has as many numbers as an action of the target.

    The message begins with `what`, the setting that gives the action, and ends with `remedy`.
    """
    if len(action) != space.action_size:
        raise UserError(
            f"{what} has {len(action)} numbers but the {space.family} target takes {space.action_size}: {remedy}"
        )


class OpenLoopController(Controller):
    """A controller that gives every candidate the same action and has no state."""

    role: str
    """The role of its actions, see `Decision.roles`."""

    @abstractmethod
    def action(self, progress: Progress) -> Tensor:
        """Return the action (A,) float32 for the share of the run that has passed."""

    def decide(self, progress: Progress, candidates: int) -> Decision:
        return Decision(self.action(progress).repeat(candidates, 1), (self.role,) * candidates)

    def learn(self, decision: Decision, outcome: DecisionOutcome, progress_after: Progress) -> Feedback:
        return Feedback(rewards=(), advantages=None, update=None)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class FixedController(OpenLoopController):
    """One action for the whole run: a fixed free-form target, or a target without an action."""

    role = "fixed"

    def __init__(self, action: tuple[float, ...], space: ActionSpace) -> None:
        if action:
            check_length("controller.action", action, space, "give as many, or none for the neutral action")
        self._action = torch.tensor(action) if action else torch.zeros(space.action_size)

    def action(self, progress: Progress) -> Tensor:
        return self._action


class ScheduleController(OpenLoopController):
    """A true-class mass that is piecewise linear over the run, e.g. rising to the one-hot label (progressive)."""

    role = "schedule"

    def __init__(self, true_mass: tuple[float, ...], space: ActionSpace) -> None:
        for mass in true_mass:
            space.action_for_true_mass(mass)  # raises now rather than in the middle of a run
        self._space, self._true_mass = space, true_mass

    def action(self, progress: Progress) -> Tensor:
        knots = np.linspace(0.0, 1.0, len(self._true_mass))
        return self._space.action_for_true_mass(float(np.interp(progress.epoch_fraction, knots, self._true_mass)))


class RecordedController(OpenLoopController):
    """The actions and learning-rate factors of an earlier run, repeated at the same shares of this run."""

    role = "recorded"

    def __init__(self, recorded: tuple[RecordedAction, ...], space: ActionSpace) -> None:
        for number, entry in enumerate(recorded):
            check_length(f"controller.recorded[{number}].action", entry.action, space, "give as many")
        self._recorded = recorded

    def decide(self, progress: Progress, candidates: int) -> Decision:
        factor = self._entry(progress).learning_rate_factor
        return replace(super().decide(progress, candidates), learning_rate_factors=(factor,) * candidates)

    def action(self, progress: Progress) -> Tensor:
        return torch.tensor(self._entry(progress).action)

    def _entry(self, progress: Progress) -> RecordedAction:
        """Return the latest entry that has begun, up to rounding; before any has, the first."""
        begun = bisect_right(self._recorded, progress.epoch_fraction + 1e-9, key=lambda entry: entry.start)
        return self._recorded[max(begun - 1, 0)]
