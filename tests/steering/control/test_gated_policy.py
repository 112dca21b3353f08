"""A gated policy as a network: its actions on a grid of times and gaps, whatever else is observed."""

import pytest
import torch

from tfkd_fast.steering.control.gated_policy import GAP, TIME, GatedPolicy, observed_policy
from tfkd_fast.steering.control.observation import PROGRESS_ENTRIES

MIDDLE, END = torch.tensor([-3.0, 0.5]), torch.tensor([2.0, -1.0])


@pytest.mark.parametrize("gap", [-0.2, 0.0, 0.05, 0.15, 0.3, 1.0])
@pytest.mark.parametrize("time", [0.0, 0.3, 0.7, 0.8, 0.999])
def test_the_action_depends_on_the_time_and_the_gap_alone(time: float, gap: float) -> None:
    generator = torch.Generator().manual_seed(0)
    policy = observed_policy(2, generator)
    GatedPolicy(MIDDLE, END, switch=0.75, threshold=0.1).write_into(policy)
    observed = 2.0 * torch.rand(5, PROGRESS_ENTRIES + 2, generator=generator) - 1.0
    observed[:, TIME], observed[:, GAP] = 2.0 * time - 1.0, gap
    expected = torch.zeros(2) if gap < 0.1 else MIDDLE if time < 0.75 else END
    torch.testing.assert_close(policy.mean(observed), expected.expand(5, 2), atol=0.02, rtol=0.0)


def test_the_passage_is_between_the_actions_on_both_sides() -> None:
    policy = observed_policy(2, torch.Generator())
    GatedPolicy(MIDDLE, END, switch=0.75, threshold=0.1).write_into(policy)
    observed = torch.zeros(101, PROGRESS_ENTRIES + 2)
    observed[:, GAP] = torch.linspace(0.0, 0.2, 101)
    actions = policy.mean(observed).detach()[:, 0]
    assert (actions.diff() <= 1e-6).all()
    assert ((actions < -0.05) & (actions > -2.95)).sum() >= 10  # it takes some hundredths of the gap
