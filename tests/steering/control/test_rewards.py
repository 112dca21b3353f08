"""Rewards and advantages against hand calculation and direct sums."""

import math

import numpy as np
import pytest
import torch

from tfkd_fast.steering.control import DecisionOutcome
from tfkd_fast.steering.control.rewards import (
    RunningScale,
    generalized_advantages,
    group_rewards,
    single_reward,
    standardize,
)


def test_group_rewards_by_hand() -> None:
    """Deviations of top-1: -3, -1, 1, 3 (root mean square sqrt 5); of the NLL: 1, 1, -1, -1 (root mean square 1)."""
    outcome = DecisionOutcome((0.47, 0.49, 0.51, 0.53), (1.6, 1.6, 1.4, 1.4), 0.3, 2.0, winner=3)
    top1 = np.array([-3, -1, 1, 3]) / math.sqrt(5)
    nll = np.array([-1, -1, 1, 1])
    np.testing.assert_allclose(group_rewards(outcome, 0.25).numpy(), 0.25 * top1 + 0.75 * nll, rtol=1e-12)


def test_group_rewards_ignore_what_hits_all_alike() -> None:
    """A drop of the learning rate shifts and scales every score."""
    top1, nll = np.array([0.4, 0.45, 0.43]), np.array([2.0, 1.9, 2.1])
    before = group_rewards(DecisionOutcome(tuple(top1), tuple(nll), 0.3, 2.5, winner=1), 0.5)
    after = group_rewards(DecisionOutcome(tuple(0.5 * top1 + 0.4), tuple(0.5 * nll - 0.3), 0.3, 2.5, winner=1), 0.5)
    torch.testing.assert_close(before, after)


def test_equal_candidates_earn_nothing() -> None:
    """Also where subtracting the parent's score leaves rounding in them."""
    assert not group_rewards(DecisionOutcome((0.7,) * 3, (1.1,) * 3, 0.1, 0.3, winner=0), 0.5).any()
    rewards = group_rewards(DecisionOutcome((0.7,) * 3, (1.0, 1.1, 1.2), 0.1, 0.3, winner=0), 0.5)
    np.testing.assert_allclose(rewards.numpy(), 0.5 * np.array([1, 0, -1]) * math.sqrt(1.5), atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("score", ["top1", "nll"])
@pytest.mark.parametrize("top1_share", [0.0, 0.25, 1.0])
def test_a_diverged_candidate_earns_least_and_leaves_the_others_comparable(
    top1_share: float, score: str, bad: float
) -> None:
    """Of the others, top-1 0.5 and 0.7 and NLL 1.0 and 0.8 are one standard deviation, 0.1, from their means: it is
    put at 0.4 and 1.1, and the rewards are those of a group with these scores."""
    scores = {"top1": (0.5, 0.9, 0.7), "nll": (1.0, 0.1, 0.8)}
    scores[score] = (scores[score][0], bad, scores[score][2])
    outcome = DecisionOutcome(**scores, parent_top1=0.3, parent_nll=2.0, winner=2)
    expected = group_rewards(DecisionOutcome((0.5, 0.4, 0.7), (1.0, 1.1, 0.8), 0.3, 2.0, winner=2), top1_share)
    torch.testing.assert_close(group_rewards(outcome, top1_share), expected)
    assert expected.argmin() == 1
    assert float(expected.mean()) == pytest.approx(0.0, abs=1e-12)


def test_where_others_are_equal_or_none_is_left() -> None:
    nan = math.nan
    rewards = group_rewards(DecisionOutcome((0.5, 0.5, nan), (1.0, 1.0, nan), 0.5, 1.0, winner=0), 0.5)
    np.testing.assert_allclose(rewards.numpy(), np.array([1, 1, -2]) / math.sqrt(2), rtol=1e-12)
    assert not group_rewards(DecisionOutcome((nan, nan), (nan, nan), 0.5, 1.0, winner=0), 0.5).any()


def test_standardize_against_numpy() -> None:
    values = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (values.numpy() - values.numpy().mean()) / values.numpy().std()
    np.testing.assert_allclose(standardize(values).numpy(), expected, rtol=1e-12)


def test_running_scale_is_a_weighted_root_mean_square() -> None:
    """After n gains the weights are 0.9^(n-1), ..., 0.9, 1, normalised."""
    gains = [0.3, -0.1, 0.0, 0.7, 0.2]
    scale = RunningScale()
    for n, gain in enumerate(gains, start=1):
        weights = 0.9 ** np.arange(n - 1, -1, -1.0)
        expected = gain / math.sqrt(np.average(np.square(gains[:n]), weights=weights))
        assert scale.normalize(gain) == pytest.approx(expected, rel=1e-12)


def test_no_gain_is_no_reward() -> None:
    assert RunningScale().normalize(0.0) == 0.0


def test_a_scaled_gain_is_bounded() -> None:
    scale = RunningScale()
    for _ in range(1000):
        scale.normalize(1e-9)
    assert scale.normalize(1.0) == pytest.approx(math.sqrt(10), rel=1e-6)


def test_single_reward_mixes_scaled_gains() -> None:
    top1, nll = RunningScale(), RunningScale()
    single_reward(DecisionOutcome((0.5,), (1.0,), 0.4, 1.2, winner=0), 0.25, top1, nll)  # gains 0.1 and 0.2
    reward = single_reward(
        DecisionOutcome((0.47,), (1.1,), 0.5, 1.0, winner=0), 0.25, top1, nll
    )  # gains -0.03 and -0.1
    root_mean_square = [math.sqrt((0.9 * a**2 + b**2) / 1.9) for a, b in ((0.1, 0.03), (0.2, 0.1))]
    assert reward == pytest.approx(0.25 * -0.03 / root_mean_square[0] + 0.75 * -0.1 / root_mean_square[1])


def test_generalized_advantages_against_the_direct_sum() -> None:
    """A_t is the sum over l of (discount * lambda)^l times the error at t+l, to the end of the segment of t."""
    generator = torch.Generator().manual_seed(0)
    rewards, values, next_values = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    continues = torch.tensor([True, True, False, True, True, True, False, True, True])
    discount, gae_lambda = 0.9, 0.95
    errors = rewards + discount * next_values - values
    expected = []
    for t in range(9):
        total, weight = 0.0, 1.0
        for step in range(t, 9):
            total += weight * errors[step].item()
            weight *= discount * gae_lambda
            if not continues[step]:
                break
        expected.append(total)
    result = generalized_advantages(rewards, values, next_values, continues, discount, gae_lambda)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)


def test_lambda_one_is_the_discounted_return_less_the_value() -> None:
    """With every state's value consistent along the segment, the values in between cancel (telescoping)."""
    states = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
    rewards = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    result = generalized_advantages(rewards, states[:-1], states[1:], torch.ones(3, dtype=torch.bool), 0.5, 1.0)
    assert result[0].item() == pytest.approx(1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 0.1 - 0.3)
