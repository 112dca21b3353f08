"""The policy: what it plays, and that it learns."""

import copy
import math

import pytest
import torch
from torch.distributions import Independent, Normal

from tests.steering.control import problems
from tests.steering.control.problems import best_action, outcome, same, stationary_decisions
from tests.support.tables import make_table
from tfkd_fast.steering.control import ControllerSettings, Decision, Progress, build_controller, observation
from tfkd_fast.steering.control.policy import GaussianPolicy
from tfkd_fast.steering.control.policy_controller import PolicyController
from tfkd_fast.steering.targets import TargetSettings, build_target


def build(name: str = "ppo", seed: int = 0, **values: object) -> PolicyController:
    """A controller of the rank-binned target over 100 classes: 5 numbers to set."""
    controller = problems.build(name, seed, **values)
    assert isinstance(controller, PolicyController)
    return controller


def mean(controller: PolicyController, progress: Progress) -> torch.Tensor:
    """The policy's mean action, as candidate 0 of a comparison plays it."""
    twin = copy.deepcopy(controller)  # a decision draws random numbers
    return twin.decide(progress, 2).actions[0]


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_it_learns_a_stationary_bandit(progress: Progress, name: str) -> None:
    """Reward -|u-u*|^2/5 with noise as large as its spread within the group; 48 decisions over 4 candidates. From an
    error of about 1.0 the mean must come to 0.35 or less, averaged over 10 seeds; it came to 0.10 to 0.19 over three
    sets of 10."""
    start, end = 0.0, 0.0
    for seed in range(10):
        controller, best = build(name, seed), best_action(seed)
        start += (mean(controller, progress) - best).square().mean().sqrt().item() / 10
        stationary_decisions(controller, progress, seed, 48, candidates=4)
        end += (mean(controller, progress) - best).square().mean().sqrt().item() / 10
    assert start > 0.8
    assert end <= 0.35


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_single_trajectories_teach_too(progress: Progress, name: str) -> None:
    """One candidate, two numbers to set, a gain that falls with the distance from (1, -1): the error halves."""
    best = torch.tensor([1.0, -1.0])
    target = build_target(make_table(TargetSettings), 2)
    error = 0.0
    for seed in range(5):
        controller = build_controller(make_table(ControllerSettings, {"name": name}), target, seed)
        assert isinstance(controller, PolicyController)
        for _ in range(240):
            decision = controller.decide(progress, 1)
            controller.learn(decision, outcome([-(decision.actions[0] - best).square().mean().item()]), progress)
        error += (mean(controller, progress) - best).square().mean().sqrt().item() / 5
    assert error <= 0.5


def test_the_first_mean_is_the_neutral_action(progress: Progress) -> None:
    assert torch.equal(build().decide(progress, 4).actions[0], torch.zeros(5))


def test_roles(progress: Progress) -> None:
    """Mean, then the winner of the latest comparison, then samples; no elite before the first winner or among two."""
    controller = build()
    first = controller.decide(progress, 4)
    assert first.roles == ("mean", "sample", "sample", "sample")
    controller.learn(first, outcome([0.0, 0.1, 0.3, 0.2]), progress)
    single = controller.decide(progress, 1)
    assert single.roles == ("sample",)
    controller.learn(single, outcome([0.1]), progress)
    second = controller.decide(progress, 4)
    assert second.roles == ("mean", "elite", "sample", "sample")
    assert torch.equal(second.actions[1], first.actions[2])
    assert controller.decide(progress, 2).roles == ("mean", "sample")


def test_samples_have_the_policys_distribution(progress: Progress) -> None:
    actions = build(seed=3).decide(progress, 4001).actions[1:]
    # standard errors of the mean and of the standard deviation of 4000 draws: 0.0063 and 0.0045; five of them
    torch.testing.assert_close(actions.mean(0), torch.zeros(5), rtol=0, atol=0.032)
    torch.testing.assert_close(actions.std(0), torch.full((5,), 0.4), rtol=0, atol=0.023)


def test_log_probabilities_against_torch_distributions(progress: Progress) -> None:
    """Also once the policy has learned, so that mean and standard deviation are not the initial ones."""
    controller = build()
    for _ in range(5):
        decision = controller.decide(progress, 4)
        controller.learn(decision, outcome(decision.actions[:, 0].tolist()), progress)
    state = controller.state_dict()
    decision = controller.decide(progress, 4)
    weights = state["policy"]
    seen = observation(progress, state["previous_action"])
    hidden = torch.tanh(weights["mean.hidden.0.weight"] @ seen + weights["mean.hidden.0.bias"])
    hidden = torch.tanh(weights["mean.hidden.1.weight"] @ hidden + weights["mean.hidden.1.bias"])
    location = (
        weights["mean.output.weight"] @ hidden + weights["mean.output.bias"] + weights["mean.trend.weight"] @ seen
    )
    expected = Independent(Normal(location, weights["log_std"].exp()), 1).log_prob(decision.actions)
    for slot in range(4):
        assert decision.log_probability(slot) == pytest.approx(expected[slot].item(), rel=1e-5)
    assert not torch.equal(location, torch.zeros(5))


def test_entropy_against_torch_distributions() -> None:
    policy = GaussianPolicy(7, 3, 0.3, torch.Generator().manual_seed(0))
    expected = Independent(Normal(torch.zeros(3), torch.full((3,), 0.3)), 1).entropy()
    torch.testing.assert_close(policy.entropy(), expected)


def test_actions_are_clipped_and_their_probability_is_the_draws(progress: Progress) -> None:
    decision = build(initial_std=8.0, max_std=8.0).decide(progress, 200)
    assert decision.draws is not None
    assert decision.actions.abs().max() == 4.0
    assert decision.draws.values.abs().max() > 4.0
    expected = Independent(Normal(torch.zeros(5), torch.full((5,), 8.0)), 1).log_prob(decision.draws.values)
    torch.testing.assert_close(decision.draws.log_probabilities, expected)


@pytest.mark.parametrize(("entropy_bonus", "expected"), [(0.0, 0.39), (100.0, 0.41)])
def test_the_standard_deviation_stays_within_bounds(progress: Progress, entropy_bonus: float, expected: float) -> None:
    """Rewards for being near the mean narrow the policy, a huge entropy bonus widens it; never past the bounds."""
    controller = build("reinforce", min_std=0.39, initial_std=0.4, max_std=0.41, entropy_bonus=entropy_bonus)
    for _ in range(8):
        decision = controller.decide(progress, 8)
        controller.learn(decision, outcome((-decision.actions.square().sum(-1)).tolist()), progress)
    assert controller.state_dict()["policy"]["log_std"].exp().tolist() == pytest.approx([expected] * 5)


def test_random_never_learns_but_knows_the_winner(progress: Progress) -> None:
    controller = build("random")
    before = controller.state_dict()["policy"]
    for _ in range(10):
        decision = controller.decide(progress, 4)
        feedback = controller.learn(decision, outcome(decision.actions[:, 0].tolist()), progress)
        assert feedback.update is None
        assert sum(feedback.rewards) == pytest.approx(0.0, abs=1e-9)
    assert same(before, controller.state_dict()["policy"])
    assert controller.decide(progress, 4).roles == ("mean", "elite", "sample", "sample")


def test_random_plays_what_ppo_would_before_it_learns(progress: Progress) -> None:
    """An equal start: the comparison between them shows the learning."""
    random, ppo = build("random"), build("ppo")
    for candidates in (1, 2, 4):
        assert random.decide(progress, candidates).actions.std() > 0
        assert ppo.decide(progress, candidates).roles == random.decide(progress, candidates).roles
    assert torch.equal(mean(random, progress), mean(ppo, progress))


def test_group_feedback(progress: Progress) -> None:
    """Two candidates, one better in both scores: rewards 1 and -1, and an update at every comparison."""
    controller = build()
    decision = controller.decide(progress, 2)
    feedback = controller.learn(decision, outcome([0.2, 0.1]), progress)
    assert feedback.rewards == pytest.approx((1.0, -1.0))
    assert feedback.advantages == feedback.rewards
    assert feedback.update is not None
    assert feedback.update["draws"] == 1.0  # the mean shapes the baseline only
    assert all(math.isfinite(value) for value in feedback.update.values())


def test_the_group_buffer_holds_the_latest_decisions(progress: Progress) -> None:
    controller = build(group_buffer=3)
    draws = []
    for _ in range(5):
        decision = controller.decide(progress, 4)
        feedback = controller.learn(decision, outcome([0.1, 0.2, 0.0, 0.3]), progress)
        assert feedback.update is not None
        draws.append(feedback.update["draws"])
    assert draws == [3, 6, 9, 9, 9]


def test_a_single_trajectory_updates_once_the_buffer_is_full(progress: Progress) -> None:
    controller = build(single_buffer=3)
    updated = []
    for step in range(7):
        decision = controller.decide(progress, 1)
        updated.append(controller.learn(decision, outcome([0.1 * (-1) ** step]), progress).update)
    assert [update is not None for update in updated] == [False, False, True, False, False, True, False]
    assert updated[2] is not None
    assert updated[2]["draws"] == 3.0


def test_the_advantages_of_a_single_trajectory_are_told_with_its_update(progress: Progress) -> None:
    """A new value network says 0 everywhere, so they are the standardised sums of later rewards, 0.9 * 0.95 a step."""
    controller = build(single_buffer=3)
    for gain in (0.1, -0.2, 0.3):
        feedback = controller.learn(controller.decide(progress, 1), outcome([gain]), progress)
        assert (feedback.buffer_advantages is None) == (gain != 0.3)
    rewards = torch.tensor([1.0, -0.2 / math.sqrt((0.9 * 0.01 + 0.04) / 1.9), 0.3 / math.sqrt(0.1341 / 2.71)])
    decay = 0.9 * 0.95
    sums = torch.stack(
        [rewards[0] + decay * rewards[1] + decay**2 * rewards[2], rewards[1] + decay * rewards[2], rewards[2]]
    )
    expected = (sums - sums.mean()) / sums.std(correction=0)
    assert feedback.buffer_advantages == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_learning_rate_drop_masks_the_transition(progress: Progress) -> None:
    """Its jump is neither rewarded nor does it enter the running scale: the transitions around it are rewarded as if
    training had begun anew, and no advantage reaches across it."""
    controller, fresh = build(), build()
    for gain in (0.1, 0.2):
        controller.learn(controller.decide(progress, 1), outcome([gain]), progress)
    masked = controller.learn(controller.decide(progress, 1), outcome([5.0], comparable=False), progress)
    assert math.isnan(masked.rewards[0])
    assert masked.update is None
    for gain in (0.01, -0.03):
        after = controller.learn(controller.decide(progress, 1), outcome([gain]), progress)
        anew = fresh.learn(fresh.decide(progress, 1), outcome([gain]), progress)
        assert after.rewards == anew.rewards
    transitions = controller.state_dict()["gradient"]["transitions"]
    assert [step["continues"] for step in transitions] == [True, False, True, True]


def test_transitions_under_one_decision_do_not_continue_each_other(progress: Progress) -> None:
    """Of two intervals under one decision both start in the state in which it was taken."""
    controller = build()
    decision = controller.decide(progress, 1)
    for gain in (0.1, 0.2):
        controller.learn(decision, outcome([gain]), progress)
    controller.learn(controller.decide(progress, 1), outcome([0.3]), progress)
    transitions = controller.state_dict()["gradient"]["transitions"]
    assert [step["continues"] for step in transitions] == [False, True, True]


def test_a_comparison_cuts_the_single_trajectory_and_survives_a_drop(progress: Progress) -> None:
    controller = build()
    controller.learn(controller.decide(progress, 1), outcome([0.1]), progress)
    grouped = controller.learn(controller.decide(progress, 3), outcome([0.3, 0.1, 0.2], comparable=False), progress)
    assert grouped.rewards == pytest.approx((math.sqrt(1.5), -math.sqrt(1.5), 0.0), abs=1e-9)
    assert grouped.update is not None
    (transition,) = controller.state_dict()["gradient"]["transitions"]
    assert not transition["continues"]


def test_the_policy_sees_the_action_of_the_survivor(progress: Progress) -> None:
    controller = build()
    decision = controller.decide(progress, 4)
    controller.learn(decision, outcome([0.0, 0.1, 0.2, 0.4]), progress)
    following = controller.decide(progress, 1)
    assert following.draws is not None
    torch.testing.assert_close(following.draws.observation[14:], decision.actions[3] / 4)


def test_a_policy_refuses_a_decision_without_draws(progress: Progress) -> None:
    with pytest.raises(ValueError, match="decision must come from a policy"):
        build().learn(Decision(torch.zeros(1, 5), ("fixed",)), outcome([0.1]), progress)
