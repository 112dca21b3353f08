"""Fixed actions, schedules, recordings and the settings that ask for them."""

from dataclasses import replace
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError

from tests.steering.control import problems
from tests.support.tables import make_table
from tfkd_fast.errors import UserError
from tfkd_fast.steering.control import ControllerSettings, Progress, build_controller
from tfkd_fast.steering.targets import TargetSettings, build_target, describe

UNIFORM = torch.full((1, 10, 10), 0.1)


def divergences(progress: Progress, family: str, name: str, masses: tuple[float, ...], steps: int) -> list[float]:
    """The divergence from one-hot of the targets that a schedule sets over a run."""
    target = build_target(make_table(TargetSettings, {"family": family}), 10)
    controller = build_controller(make_table(ControllerSettings, {"name": name, "true_mass": masses}), target, 0)
    found = []
    for fraction in np.linspace(0, 1, steps):
        decision = controller.decide(replace(progress, epoch_fraction=float(fraction)), 1)
        (summary,) = describe(target.tables(decision.actions, UNIFORM), UNIFORM)
        found.append(summary.divergence)
    return found


@pytest.mark.parametrize("family", ["scalar", "rank-binned", "full-matrix"])
def test_a_schedule_may_move_away_from_one_hot(progress: Progress, family: str) -> None:
    """Non-progressive: masses 0.9, 0.6, 0.95 give divergences -log of them, which rise and then fall."""
    found = divergences(progress, family, "schedule", (0.9, 0.6, 0.95), 3)
    assert found == pytest.approx(-np.log([0.9, 0.6, 0.95]), abs=1e-5)
    assert found[0] < found[1] > found[2]


def test_a_progressive_schedule_only_approaches_one_hot(progress: Progress) -> None:
    found = divergences(progress, "rank-binned", "progressive", (0.6, 0.7, 0.999), 21)
    assert all(before > after for before, after in pairwise(found))
    assert found[-1] == pytest.approx(-np.log(0.999), abs=1e-5)


def test_a_schedule_is_linear_between_its_masses(progress: Progress) -> None:
    found = divergences(progress, "scalar", "schedule", (0.6, 0.9, 0.7), 9)
    expected = np.interp(np.linspace(0, 1, 9), [0, 0.5, 1], [0.6, 0.9, 0.7])
    assert np.exp(-np.array(found)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("masses", [[0.9, 0.6, 0.95], [0.6, 0.6], [0.9, 0.8]])
def test_progressive_refuses_masses_that_do_not_rise(masses: list[float]) -> None:
    with pytest.raises(ValidationError, match="progressive masses must rise"):
        make_table(ControllerSettings, {"name": "progressive", "true_mass": masses})
    make_table(ControllerSettings, {"name": "schedule", "true_mass": masses})


def test_a_schedule_outside_the_targets_range_is_refused_at_once() -> None:
    target = build_target(make_table(TargetSettings), 10)
    with pytest.raises(UserError, match=r"true-class mass 0\.3 lies outside"):
        build_controller(make_table(ControllerSettings, name="schedule", true_mass=(0.3, 0.9)), target, 0)


def test_fixed_plays_one_action_for_every_candidate(progress: Progress) -> None:
    target = build_target(make_table(TargetSettings), 10)
    controller = build_controller(make_table(ControllerSettings, name="fixed", action=(0.5, 1.0, -1.0, 0.0)), target, 0)
    decision = controller.decide(progress, 3)
    assert torch.equal(decision.actions, torch.tensor([[0.5, 1.0, -1.0, 0.0]] * 3))
    assert decision.roles == ("fixed",) * 3
    assert decision.log_probability(0) is None


def test_fixed_is_neutral_by_default_and_empty_for_a_constant_target(progress: Progress) -> None:
    fixed = make_table(ControllerSettings, name="fixed")
    neutral = build_controller(fixed, build_target(make_table(TargetSettings), 10), 0).decide(progress, 2)
    assert torch.equal(neutral.actions, torch.zeros(2, 4))
    empty = build_controller(fixed, build_target(make_table(TargetSettings, family="one-hot"), 10), 0).decide(
        progress, 2
    )
    assert empty.actions.shape == (2, 0)


def test_an_action_of_the_wrong_length_is_refused() -> None:
    target = build_target(make_table(TargetSettings), 10)
    with pytest.raises(UserError, match=r"controller\.action has 2 numbers but the rank-binned target takes 4"):
        build_controller(make_table(ControllerSettings, name="fixed", action=(0.0, 1.0)), target, 0)


@pytest.mark.parametrize(
    "values",
    [
        {"initial_std": 2.0},
        {"max_std": 0.3},
        {"min_std": 0.5},
        {"policy": "cifar10", "initial_std": 0.3},
        {"name": "schedule", "true_mass": [0.5]},
        {"name": "fixed", "action": [float("nan")]},
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make_table(ControllerSettings, values)


RECORDED = [
    {"start": 0.1, "action": [1.0] * 5},
    {"start": 0.3, "action": [2.0] * 5, "learning_rate_factor": 0.5},
    {"start": 0.9, "action": [3.0] * 5, "learning_rate_factor": 2.0},
]


@pytest.mark.parametrize(
    ("fraction", "entry"), [(0.0, 0), (0.1, 0), (0.2999, 0), (3 * 0.1 - 1e-12, 1), (0.3, 1), (0.9, 2), (1.0, 2)]
)
def test_a_recording_plays_what_has_begun_last(progress: Progress, fraction: float, entry: int) -> None:
    controller = problems.build("recorded", recorded=RECORDED)
    decision = controller.decide(replace(progress, epoch_fraction=fraction), 2)
    assert torch.equal(decision.actions, torch.full((2, 5), entry + 1.0))
    assert decision.learning_rate_factors == ((1.0, 0.5, 2.0)[entry],) * 2
    assert decision.roles == ("recorded",) * 2


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(starts=st.sets(st.integers(0, 99), min_size=1), epochs=st.integers(1, 100))
def test_a_recording_looks_up_as_a_search_from_the_front_does(
    progress: Progress, starts: set[int], epochs: int
) -> None:
    """Starts in hundredths of the run, looked up at every epoch of a run of another length, in whole numbers."""
    ordered = sorted(starts)
    recorded = [{"start": start / 100, "action": [float(start)] * 5} for start in ordered]
    controller = problems.build("recorded", recorded=recorded)
    for epoch in range(epochs):
        begun = [start for start in ordered if start * epochs <= epoch * 100] or ordered[:1]
        decision = controller.decide(replace(progress, epoch_fraction=epoch / epochs), 1)
        assert decision.actions[0, 0] == begun[-1]


def test_a_recording_needs_no_action_where_there_is_none(progress: Progress) -> None:
    recorded = [{"start": 0.0, "action": [], "learning_rate_factor": 0.5}]
    controller = problems.build("recorded", target={"family": "one-hot"}, recorded=recorded)
    decision = controller.decide(progress, 2)
    assert decision.actions.shape == (2, 0)
    assert decision.learning_rate_factors == (0.5, 0.5)


def test_a_recording_of_another_target_is_refused() -> None:
    recorded = [*RECORDED[:2], {"start": 0.5, "action": [1.0]}]
    with pytest.raises(UserError, match=r"controller\.recorded\[2\]\.action has 1 numbers but the rank-binned target"):
        problems.build("recorded", recorded=recorded)


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ([], "at least 1 item"),
        (RECORDED[::-1], "entries must be in order"),
        ([RECORDED[0], RECORDED[0]], "entries must be in order"),
        ([{"start": 1.0, "action": []}], "less than 1"),
        ([{"start": 0.0, "action": [], "learning_rate_factor": 0.0}], "greater than 0"),
        ([{"action": []}], "start"),
    ],
)
def test_recordings_that_make_no_sense_are_refused(recorded: list[object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_table(ControllerSettings, {"name": "recorded", "recorded": recorded})
