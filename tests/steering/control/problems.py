"""A problem with a known answer, and small tools that several control tests share."""

import torch
from torch import Tensor

from tests.support.tables import make_table
from tfkd_fast.steering.control import (
    Controller,
    ControllerSettings,
    Decision,
    DecisionOutcome,
    Progress,
    build_controller,
)
from tfkd_fast.steering.targets import TargetSettings, build_target


def build(name: str, seed: int = 0, target: dict[str, object] | None = None, **values: object) -> Controller:
    """A controller of a target over 100 classes; by default the rank-binned one, of 5 numbers."""
    space = build_target(make_table(TargetSettings, target or {}), 100)
    return build_controller(make_table(ControllerSettings, {"name": name, **values}), space, seed)


def outcome(scores: list[float], comparable: bool = True, action_gradient: Tensor | None = None) -> DecisionOutcome:
    """Candidates whose gains in top-1 and in NLL are the same scores."""
    best = max(range(len(scores)), key=scores.__getitem__)
    nll = tuple(-score for score in scores)
    return DecisionOutcome(tuple(scores), nll, 0.0, 0.0, best, comparable, action_gradient)


def best_action(seed: int) -> Tensor:
    """(5,) float32 from N(0, I)."""
    return torch.randn(5, generator=torch.Generator().manual_seed(1000 + seed))


def stationary_decisions(
    controller: Controller, progress: Progress, seed: int, decisions: int, candidates: int
) -> list[Decision]:
    """Decisions of a controller that learns where reward is -|u-u*|^2/5 for u* = `best_action(seed)`.

    The noise is as large as the spread of the rewards within the group, and 0.3 for a single candidate.
    """
    generator = torch.Generator().manual_seed(2000 + seed)
    best, played = best_action(seed), []
    for _ in range(decisions):
        decision = controller.decide(progress, candidates)
        scores = -(decision.actions - best).square().mean(-1)
        spread = scores.std() if candidates > 1 else 0.3
        scores = scores + spread * torch.randn(candidates, generator=generator)
        controller.learn(decision, outcome(scores.tolist()), progress)
        played.append(decision)
    return played


def same(left: object, right: object) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)
