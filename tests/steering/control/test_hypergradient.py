"""The hypergradient controller: steps of Adam, within the limit, on finite gradients."""

import math

import pytest
import torch

from tests.steering.control.problems import build, outcome
from tfkd_fast.steering.control import Controller, Feedback, Progress


def learn(controller: Controller, progress: Progress, gradient: torch.Tensor | None) -> Feedback:
    decision = controller.decide(progress, 2)
    return controller.learn(decision, outcome([0.1, 0.2], False, gradient), progress)


def test_the_action_is_neutral_at_first_and_the_same_for_all(progress: Progress) -> None:
    controller = build("hypergradient")
    decision = controller.decide(progress, 3)
    assert torch.equal(decision.actions, torch.zeros(3, 5))
    assert decision.roles == ("hypergradient",) * 3


def test_steps_are_adams(progress: Progress) -> None:
    """Kingma & Ba (ICLR 2015), algorithm 1, in float64. A drop of the learning rate is no obstacle."""
    controller = build("hypergradient", hypergradient_rate=0.2)
    generator = torch.Generator().manual_seed(0)
    action, first, second = torch.zeros(3, 5, dtype=torch.float64)
    for step in range(1, 8):
        gradient = torch.randn(5, generator=generator)
        feedback = learn(controller, progress, gradient)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.double().square()
        action = action - 0.2 * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        torch.testing.assert_close(controller.decide(progress, 1).actions[0], action.float())
        assert feedback.update == {"gradient_norm": pytest.approx(gradient.norm().item()), "skipped": 0.0}


def test_it_finds_the_least_loss_and_stays_within_the_limit(progress: Progress) -> None:
    """Gradient u - (1, -2, 0.5, 9, -9): the last two lie beyond the limit."""
    controller, best = build("hypergradient"), torch.tensor([1.0, -2.0, 0.5, 9.0, -9.0])
    for _ in range(200):
        learn(controller, progress, controller.decide(progress, 1).actions[0] - best)
    expected = best.clamp(-4, 4)
    torch.testing.assert_close(controller.decide(progress, 1).actions[0], expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_skipped(progress: Progress, bad: float) -> None:
    """And leaves no trace: the steps that follow are those of a controller that never met it."""
    controller, other = build("hypergradient"), build("hypergradient")
    for gradient in (torch.ones(5), torch.arange(5.0)):
        learn(other, progress, gradient)
        learn(controller, progress, gradient)
        update = learn(controller, progress, torch.tensor([1.0, 1.0, bad, 1.0, 1.0])).update
        assert update is not None
        assert update["skipped"] == 1.0
    assert torch.equal(controller.decide(progress, 1).actions, other.decide(progress, 1).actions)


def test_a_missing_gradient_is_refused(progress: Progress) -> None:
    with pytest.raises(ValueError, match=r"learns from outcome\.action_gradient"):
        learn(build("hypergradient"), progress, None)
