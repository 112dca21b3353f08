"""A gated policy as a network: its actions on a grid of times and gaps, whatever else is observed."""

from math import tanh

import pytest
import torch

from tfkd_fast.steering.control.gated_policy import GAP, LEAST_MASS, TIME, GatedPolicy, observed_policy
from tfkd_fast.steering.control.observation import PROGRESS_ENTRIES

START, MIDDLE, END = torch.tensor([-3.0, -2.0]), torch.tensor([-3.0, 0.5]), torch.tensor([2.0, -1.0])


@pytest.mark.parametrize("gap", [-0.2, 0.0, 0.05, 0.15, 0.3, 1.0])
@pytest.mark.parametrize("time", [0.0, 0.3, 0.7, 0.8, 0.875, 0.95, 1.0])
def test_the_action_depends_on_the_time_and_the_gap_alone(time: float, gap: float) -> None:
    generator = torch.Generator().manual_seed(0)
    policy = observed_policy(2, generator)
    GatedPolicy(START, MIDDLE, END, switch=0.75, threshold=0.1).write_into(policy)
    observed = 2.0 * torch.rand(5, PROGRESS_ENTRIES + 2, generator=generator) - 1.0
    observed[:, TIME], observed[:, GAP] = 2.0 * time - 1.0, gap
    first, second = (
        0.5 + 0.5 * tanh(2.5 * tanh(0.8 * (time - centre) / half)) / tanh(2.5)
        for centre, half in ((0.375, 0.375), (0.875, 0.125))
    )
    way = START + first * (MIDDLE - START) + second * (END - MIDDLE)
    expected = torch.zeros(2) if gap < 0.1 else way
    torch.testing.assert_close(policy.mean(observed), expected.expand(5, 2), atol=0.1, rtol=0.0)  # 2 % of the way


def test_the_course_begins_at_the_switch_and_ends_with_the_run() -> None:
    policy = observed_policy(2, torch.Generator())
    GatedPolicy(START, MIDDLE, END, switch=0.6, threshold=0.1).write_into(policy)
    observed = torch.zeros(101, PROGRESS_ENTRIES + 2)
    observed[:, TIME], observed[:, GAP] = torch.linspace(-1.0, 1.0, 101), 0.4
    done = ((policy.mean(observed).detach() - MIDDLE) / (END - MIDDLE))[:, 0]
    assert (done.diff() >= -1e-6).all()
    assert done[50] < 0.02
    assert done[60] < 0.05
    assert done[80] == pytest.approx(0.5, abs=0.01)
    assert done[100] > 0.95


def test_the_passage_is_between_the_actions_on_both_sides() -> None:
    policy = observed_policy(2, torch.Generator())
    GatedPolicy(START, MIDDLE, END, switch=0.75, threshold=0.1).write_into(policy)
    observed = torch.zeros(101, PROGRESS_ENTRIES + 2)
    observed[:, GAP] = torch.linspace(0.0, 0.2, 101)
    actions = policy.mean(observed).detach()[:, 0]
    assert ((actions <= 0.05) & (actions >= -3.05)).all()  # 1 % of the way
    assert ((actions < -0.05) & (actions > -2.95)).sum() >= 4  # it takes a hundredth of the gap


@pytest.mark.parametrize(
    ("time", "least_mass", "gap", "opened"),
    [
        (0.1, 1.0, 0.2, True),
        (0.3, 0.9, 0.2, True),
        (0.57, 0.9, 0.2, True),
        (0.63, 0.9, 0.2, False),
        (1.0, 0.9, 0.9, False),
        (0.63, 0.55, 0.2, True),
        (1.0, 0.55, 0.2, True),
        (1.0, 0.55, 0.05, False),
        (0.3, 0.55, 0.05, False),
    ],
)
def test_the_gate_opens_early_alone_and_stays_open_late(
    time: float, least_mass: float, gap: float, opened: bool
) -> None:
    policy = observed_policy(2, torch.Generator())
    GatedPolicy(START, START, START, switch=0.75, threshold=0.1, latest=0.6).write_into(policy)
    observed = torch.zeros(PROGRESS_ENTRIES + 2)
    observed[TIME], observed[LEAST_MASS], observed[GAP] = 2.0 * time - 1.0, 2.0 * least_mass - 1.0, gap
    expected = START if opened else torch.zeros(2)
    torch.testing.assert_close(policy.mean(observed), expected, atol=0.05, rtol=0.0)
