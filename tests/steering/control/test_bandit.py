"""Bandits: what they know, whom they choose by it, and that they find the best arm."""

import math

import pytest
import torch
from pydantic import ValidationError

from tests.steering.control.problems import best_action, build, outcome, stationary_decisions
from tests.support.tables import make_table
from tfkd_fast.errors import UserError
from tfkd_fast.steering.control import ControllerSettings, Progress
from tfkd_fast.steering.control.bandit import BanditController, axis_grid

NAMES = ("thompson", "ucb")


def bandit(name: str, seed: int = 0, **values: object) -> BanditController:
    controller = build(name, seed, **values)
    assert isinstance(controller, BanditController)
    return controller


def arms_of(roles: tuple[str, ...]) -> list[int]:
    return [int(role.removeprefix("arm ")) for role in roles]


def test_the_axis_grid_by_hand() -> None:
    assert axis_grid(2, 1.5).tolist() == [[0, 0], [1.5, 0], [-1.5, 0], [0, 1.5], [0, -1.5]]


@pytest.mark.parametrize(
    ("name", "candidates", "decisions", "share"),
    [
        ("thompson", 4, 48, 0.9),
        ("ucb", 4, 48, 0.9),
        ("thompson", 2, 48, 0.45),
        ("ucb", 2, 48, 0.8),
        ("thompson", 1, 240, 0.13),
        ("ucb", 1, 240, 0.3),
    ],
)
def test_the_best_of_eleven_arms_is_found(
    progress: Progress, name: str, candidates: int, decisions: int, share: float
) -> None:
    """How many of the last quarter of the decisions play the best arm, mean of 10 seeds.

    Chance gives 0.36, 0.18 and 0.09. Over three sets of 10 seeds there were 1.00, 1.00; 0.64 to 0.80, 1.00; 0.19 to
    0.22, 0.42 to 0.55. Alone, arms differ by little beside the gain that they share, so that Thompson goes on trying.
    """
    found = 0.0
    for seed in range(10):
        best = int((axis_grid(5, 1.5) - best_action(seed)).square().sum(-1).argmin())
        played = stationary_decisions(bandit(name, seed), progress, seed, decisions, candidates)
        last = played[-decisions // 4 :]
        found += sum(best in arms_of(decision.roles) for decision in last) / len(last) / 10
    assert found >= share


@pytest.mark.parametrize("name", NAMES)
def test_forgetting_follows_a_change(progress: Progress, name: str) -> None:
    """Arm 0 is the better of two for 200 decisions, then arm 1: after 40 more, only who forgets has noticed."""

    def plays_new_arm(forgetting: float) -> int:
        controller, count = bandit(name, arms=((0.0,) * 5, (1.0,) * 5), forgetting=forgetting), 0
        for k in range(240):
            decision = controller.decide(progress, 1)
            gain = 1.0 if arms_of(decision.roles) == [int(k >= 200)] else -1.0
            controller.learn(decision, outcome([gain]), progress)
            count += k >= 230 and arms_of(decision.roles) == [1]
        return count

    assert plays_new_arm(0.9) >= 8
    assert plays_new_arm(1.0) <= 2


@pytest.mark.parametrize("name", NAMES)
def test_several_candidates_play_different_arms(progress: Progress, name: str) -> None:
    """Arms repeat where there are more candidates than arms, each as often as the others."""
    controller = bandit(name)
    for candidates in (1, 4, 11):
        decision = controller.decide(progress, candidates)
        assert len(set(decision.roles)) == candidates
        assert torch.equal(decision.actions, axis_grid(5, 1.5)[arms_of(decision.roles)])
    repeated = controller.decide(progress, 22).roles
    assert sorted(repeated) == sorted(2 * [f"arm {arm}" for arm in range(11)])


def test_given_arms_are_played(progress: Progress) -> None:
    arms = ((0.0, 1.0, 2.0, 3.0, 4.0), (0.1, 0.2, 0.3, 0.4, 0.5))
    decision = bandit("ucb", arms=arms).decide(progress, 2)
    assert torch.equal(decision.actions, torch.tensor(arms)[arms_of(decision.roles)])


def test_ucb_tries_every_arm_first_in_an_order_of_its_seed(progress: Progress) -> None:
    orders = set()
    for seed in range(3):
        controller, tried = bandit("ucb", seed), []
        for _ in range(11):
            decision = controller.decide(progress, 1)
            controller.learn(decision, outcome([1.0]), progress)
            tried += arms_of(decision.roles)
        assert sorted(tried) == list(range(11))
        orders.add(tuple(tried))
    assert len(orders) == 3


def test_ucb_plays_the_highest_bounds(progress: Progress) -> None:
    """Discounted sums over the whole history, from the definition: an arm's reward counts 0.9^age."""
    controller = bandit("ucb", forgetting=0.9, exploration=0.7)
    history: list[tuple[list[int], tuple[float, ...]]] = []
    for _ in range(30):
        decision = controller.decide(progress, 3)
        feedback = controller.learn(decision, outcome(decision.actions.cos().sum(-1).tolist()), progress)
        history.append((arms_of(decision.roles), feedback.rewards))
    count, total = [0.0] * 11, [0.0] * 11
    for age, (arms, rewards) in enumerate(reversed(history)):
        for arm, reward in zip(arms, rewards, strict=True):
            count[arm] += 0.9**age
            total[arm] += 0.9**age * reward
    draws = math.log(sum(count))
    bounds = [total[arm] / count[arm] + 0.7 * math.sqrt(draws / count[arm]) for arm in range(11)]
    highest = sorted(range(11), key=bounds.__getitem__, reverse=True)[:3]
    assert arms_of(controller.decide(progress, 3).roles) == highest


def test_thompson_draws_from_the_posterior() -> None:
    """Prior N(0,1), rewards of variance 1: N(sum / (1+n), 1 / (1+n)); standard errors of 20,000 draws are below 0.008
    for the mean and 0.005 for the standard deviation."""
    counts, sums = torch.tensor([0.0, 3.0, 8.0]).double(), torch.tensor([0.0, 4.0, -9.0]).double()
    generator = torch.Generator().manual_seed(0)
    controller = bandit("thompson")
    draws = torch.stack([controller.scores(counts, sums, generator) for _ in range(20_000)])
    assert draws.mean(0).tolist() == pytest.approx([0.0, 1.0, -1.0], abs=0.03)
    assert draws.std(0).tolist() == pytest.approx([1.0, 0.5, 1 / 3], abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_a_learning_rate_drop_teaches_nothing_alone_but_among_several(progress: Progress, name: str) -> None:
    controller = bandit(name)
    before = controller.state_dict()["counts"]
    single = controller.learn(controller.decide(progress, 1), outcome([5.0], comparable=False), progress)
    assert math.isnan(single.rewards[0])
    assert single.update is None
    assert torch.equal(before, controller.state_dict()["counts"])
    group = controller.learn(controller.decide(progress, 3), outcome([0.1, 0.2, 0.3], comparable=False), progress)
    assert group.update is not None
    assert controller.state_dict()["counts"].sum() == 3


def test_the_figures_name_the_leader(progress: Progress) -> None:
    """Rewards 1 and -1 of one decision: the posterior mean of the winner is 1/2."""
    controller = bandit("thompson")
    decision = controller.decide(progress, 2)
    feedback = controller.learn(decision, outcome([0.2, 0.1]), progress)
    assert feedback.rewards == pytest.approx((1.0, -1.0))
    assert feedback.update == {"leader": arms_of(decision.roles)[0], "leader_mean": pytest.approx(0.5), "draws": 2.0}


def test_an_action_that_is_no_arm_is_refused(progress: Progress) -> None:
    with pytest.raises(ValueError, match="an action that is no arm"):
        bandit("ucb").learn(build("cma-es").decide(progress, 2), outcome([0.1, 0.2]), progress)


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_of_the_wrong_length_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"controller\.arms\[1\] has 2 numbers but the rank-binned target takes 5"):
        build(name, arms=((0.0,) * 5, (0.0, 1.0)))


@pytest.mark.parametrize("values", [{"arms": [[0.0], [0.0]]}, {"forgetting": 0.0}, {"arms": [[math.inf]]}])
def test_settings_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make_table(ControllerSettings, {"name": "ucb", **values})
