"""What holds of every controller: resuming, seeds, the global random state; and the decisions that they make."""

import copy
import io
import math
import random
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from tests.steering.control.problems import build, outcome, same
from tfkd_fast.errors import UserError
from tfkd_fast.methods.controlled.method import ControlledTargetsSettings
from tfkd_fast.settings import table_forms
from tfkd_fast.steering.control import Controller, Decision, Progress, with_every_entry
from tfkd_fast.steering.control.controller import Draws

RECORDED = ({"start": 0.1, "action": (1.0,) * 5}, {"start": 0.5, "action": (2.0,) * 5, "learning_rate_factor": 0.5})
LEARNING = ("random", "ppo", "reinforce", "thompson", "ucb", "cma-es", "hypergradient")
VALUES: dict[str, dict[str, object]] = {
    "fixed": {"action": (0.5,) * 5},
    "schedule": {"true_mass": (0.9, 0.6, 0.95)},
    "progressive": {},
    "recorded": {"recorded": RECORDED},
    "policy": {"policy": "cifar10"},
    **{name: {} for name in LEARNING},
}


def test_every_controller_is_among_them() -> None:
    (union,) = [field for name, field in ControlledTargetsSettings.model_fields.items() if name == "controller"]
    forms = table_forms(union)
    assert forms is not None
    assert set(VALUES) == set(forms.names)


def play(controller: Controller, progress: Progress, decisions: range) -> list[dict[str, object]]:
    """Singles and comparisons in turn, with masked transitions among them; returns all decisions."""
    played = []
    for k in decisions:
        now = replace(progress, epoch_fraction=k / 40, holdout_top1=0.5 + k / 100)
        decision = controller.decide(now, 4 if k % 5 == 4 else 1)
        scores = (decision.actions.sin().sum(-1) / 10).tolist()
        gradient = decision.actions[0] - 1.0
        came = outcome(scores, comparable=k % 9 != 8, action_gradient=gradient)
        controller.learn(decision, came, replace(now, epoch_fraction=(k + 1) / 40))
        played.append(decision.state_dict())
    return played


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("stop", [0, 3, 17])
def test_a_resumed_controller_continues_bit_for_bit(progress: Progress, name: str, stop: int) -> None:
    """Through a file that may hold tensors and numbers only, into a controller of another seed."""
    uninterrupted = build(name, **VALUES[name])
    play(uninterrupted, progress, range(stop))
    file = io.BytesIO()
    torch.save(uninterrupted.state_dict(), file)
    kept = uninterrupted.state_dict()
    expected = play(uninterrupted, progress, range(stop, 40))

    for state in (torch.load(io.BytesIO(file.getvalue()), weights_only=True), kept):
        resumed = build(name, seed=99, **VALUES[name])
        resumed.load_state_dict(state)
        assert same(play(resumed, progress, range(stop, 40)), expected)
        assert same(resumed.state_dict(), uninterrupted.state_dict())


@pytest.mark.parametrize("name", LEARNING)
def test_a_run_may_stop_between_a_decision_and_its_outcome(progress: Progress, name: str) -> None:
    uninterrupted = build(name)
    play(uninterrupted, progress, range(13))
    decision = uninterrupted.decide(progress, 4)
    resumed = build(name, seed=99)
    resumed.load_state_dict(uninterrupted.state_dict())
    came = outcome([0.3, 0.1, 0.2, 0.4], action_gradient=torch.ones(5))
    assert same(
        uninterrupted.learn(decision, came, progress).update,
        resumed.learn(Decision.from_state_dict(decision.state_dict()), came, progress).update,
    )
    assert same(play(resumed, progress, range(14, 30)), play(uninterrupted, progress, range(14, 30)))


def without_the_last_entry(state: object, ones: bool = False) -> tuple[object, object]:
    """The state of a policy of 5 numbers as an earlier version saved it, and what it is today. Entry 13 of 19 is 1 in
    observations, and elsewhere 0."""
    if isinstance(state, dict):
        both = {name: without_the_last_entry(value, "observation" in str(name)) for name, value in state.items()}
        return {name: old for name, (old, _) in both.items()}, {name: new for name, (_, new) in both.items()}
    if isinstance(state, list):
        pairs = [without_the_last_entry(value) for value in state]
        return [old for old, _ in pairs], [new for _, new in pairs]
    if not isinstance(state, torch.Tensor) or state.ndim == 0 or state.shape[-1] != 19:
        return state, state
    new = state.clone()
    new[..., 13] = float(ones)
    return new[..., [*range(13), *range(14, 19)]], new


@pytest.mark.parametrize("name", ["policy", "random", "ppo", "reinforce"])
@pytest.mark.parametrize("stop", [3, 17])
def test_a_policy_of_an_earlier_version_goes_on(progress: Progress, name: str, stop: int) -> None:
    interrupted, today, resumed = (build(name, **VALUES[name]) for _ in range(3))
    play(interrupted, progress, range(stop))
    decision = interrupted.decide(progress, 4)
    earlier, expected = without_the_last_entry(interrupted.state_dict())
    assert not same(earlier, expected)
    for controller, state in ((today, expected), (resumed, earlier)):
        controller.load_state_dict(copy.deepcopy(state))
    assert same(resumed.state_dict(), expected)
    decided, expected = without_the_last_entry(decision.state_dict())
    assert same(with_every_entry(decided, 5), expected)
    assert same(play(resumed, progress, range(stop, 30)), play(today, progress, range(stop, 30)))


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
@pytest.mark.parametrize("candidates", [18, 19])
def test_as_many_candidates_as_an_earlier_observation_had_entries_change_nothing(
    progress: Progress, name: str, candidates: int
) -> None:
    saved, resumed = build(name), build(name, seed=99)
    decision = saved.decide(progress, candidates)
    assert same(with_every_entry(decision.state_dict(), 5), decision.state_dict())
    saved.learn(decision, outcome([0.01 * slot for slot in range(candidates)]), progress)
    resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert same(resumed.state_dict(), saved.state_dict())
    assert same(with_every_entry(saved.state_dict(), 5), saved.state_dict())


@pytest.mark.parametrize("name", [name for name in LEARNING if name != "hypergradient"])
def test_a_seed_fixes_the_run_and_seeds_differ(progress: Progress, name: str) -> None:
    assert same(play(build(name, 1), progress, range(12)), play(build(name, 1), progress, range(12)))
    assert not same(play(build(name, 1), progress, range(3)), play(build(name, 2), progress, range(3)))
    build(name, 2**63 - 1).decide(progress, 1)  # the largest seed of a recipe


@pytest.mark.parametrize("name", VALUES)
def test_the_global_random_states_are_left_alone(progress: Progress, name: str) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    play(build(name, **VALUES[name]), progress, range(12))
    assert same(before, (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()))


@pytest.mark.parametrize("name", VALUES)
def test_candidates_get_different_actions_if_the_controller_explores(progress: Progress, name: str) -> None:
    controller, differed = build(name, **VALUES[name]), False
    for _ in range(3):
        actions = controller.decide(progress, 4).actions
        differed |= not torch.equal(actions, actions[:1].expand_as(actions))
    forms = table_forms(ControlledTargetsSettings.model_fields["controller"])
    assert forms is not None
    assert differed == forms.names[name].explores  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["one-hot", "label-smoothing"])
@pytest.mark.parametrize("name", LEARNING)
def test_what_learns_needs_something_to_set(family: str, name: str) -> None:
    with pytest.raises(UserError, match=f"the {name} controller has nothing to set in the {family} target"):
        build(name, target={"family": family})


@pytest.mark.parametrize("name", LEARNING)
def test_one_number_is_enough(progress: Progress, name: str) -> None:
    controller = build(name, target={"family": "scalar"})
    for _ in range(4):
        decision = controller.decide(progress, 4)
        assert decision.actions.shape == (4, 1)
        came = outcome(decision.actions[:, 0].tolist(), action_gradient=torch.ones(1))
        controller.learn(decision, came, progress)


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_leave_no_trace_in_what_follows(progress: Progress, name: str, bad: float) -> None:
    """A candidate that diverged among others, and a single one: every later action and reward is finite."""
    controller = build(name)
    for k in range(24):
        candidates = 4 if k % 2 else 1
        decision = controller.decide(progress, candidates)
        assert decision.actions.isfinite().all()
        came = outcome([0.1 * slot for slot in range(candidates)], action_gradient=torch.ones(5))
        diverged = k in (4, 7, 8)
        if diverged:
            nll = (bad, *came.nll[1:])
            came = replace(came, nll=nll, winner=candidates - 1, action_gradient=torch.full((5,), bad))
        after = replace(progress, holdout_nll=bad) if diverged and candidates == 1 else progress
        feedback = controller.learn(decision, came, after)
        if candidates > 1 and name != "hypergradient":
            assert all(map(math.isfinite, feedback.rewards))
            assert not diverged or min(feedback.rewards) == feedback.rewards[0]


@pytest.mark.parametrize("name", VALUES)
def test_a_decision_survives_a_checkpoint(progress: Progress, name: str) -> None:
    decision = build(name, **VALUES[name]).decide(progress, 3)
    file = io.BytesIO()
    torch.save(decision.state_dict(), file)
    file.seek(0)
    restored = Decision.from_state_dict(torch.load(file, weights_only=True))
    assert restored.roles == decision.roles
    assert restored.learning_rate_factors == decision.learning_rate_factors
    assert same(restored.state_dict(), decision.state_dict())


def test_what_the_policy_saw_can_be_told(progress: Progress) -> None:
    seen = build("ppo").decide(progress, 2).observation()
    assert seen is not None
    assert len(seen) == 14 + 5
    assert seen[0] == pytest.approx(2 * progress.epoch_fraction - 1)
    assert build("ucb").decide(progress, 2).observation() is None


@given(data=st.data(), count=st.integers(1, 6), with_draws=st.booleans(), with_factors=st.booleans())
def test_a_subset_tells_of_each_candidate_what_the_whole_does(
    data: st.DataObject, count: int, with_draws: bool, with_factors: bool
) -> None:
    chosen = data.draw(st.lists(st.integers(0, count - 1), max_size=8))
    actions = torch.arange(3.0 * count).reshape(count, 3)
    whole = Decision(
        actions,
        tuple(f"role {row}" for row in range(count)),
        Draws(torch.ones(16), 2 * actions, -actions[:, 0]) if with_draws else None,
        tuple(1.0 + row for row in range(count)) if with_factors else None,
    )
    part = whole.subset(chosen)
    assert part.roles == tuple(f"role {row}" for row in chosen)
    assert part.observation() == whole.observation()
    assert (part.learning_rate_factors is None) == (not with_factors)
    for slot, row in enumerate(chosen):
        assert torch.equal(part.actions[slot], whole.actions[row])
        assert part.log_probability(slot) == whole.log_probability(row)
        if part.draws and whole.draws:
            assert torch.equal(part.draws.values[slot], whole.draws.values[row])
        if part.learning_rate_factors:
            assert part.learning_rate_factors[slot] == 1.0 + row
