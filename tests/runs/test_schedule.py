"""Learning rates of the reference recipe and of the alternatives."""

import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from scipy.integrate import quad
from scipy.optimize import brentq

from tfkd_fast.errors import UserError
from tfkd_fast.runs.optimizer import SGDSettings
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.runs.schedule import (
    CosineSchedule,
    OneCycleSchedule,
    ScheduleBase,
    ScheduleSettings,
    StepSchedule,
    phases,
)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(1, 0.05), (150, 0.05), (151, 0.005), (181, 5e-4), (211, 5e-5), (240, 5e-5)]
)
def test_reference_recipe_drops_after_epochs_150_180_and_210(epoch: int, expected: float) -> None:
    rate = SGDSettings().learning_rate * StepSchedule().ratio((epoch - 1) / 240)
    assert rate == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 703, 782])
def test_a_drop_falls_on_the_first_step_of_its_epoch(steps: int) -> None:
    ratio = StepSchedule().ratio
    assert ratio((149 + (steps - 1) / steps) / 240) == 1.0
    assert ratio(150 / 240) == pytest.approx(0.1)


def test_cosine_falls_from_one_to_zero() -> None:
    ratio = CosineSchedule(name="cosine").ratio
    assert [ratio(0), ratio(0.5), ratio(1)] == pytest.approx([1, 0.5, 0], abs=1e-12)
    assert ratio(0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_one_cycle_rises_linearly_then_falls_like_a_cosine() -> None:
    schedule = OneCycleSchedule(name="one-cycle", warmup=0.2, start=0.04)
    assert schedule.ratio(0) == pytest.approx(0.04)
    assert schedule.ratio(0.1) == pytest.approx(0.52)
    assert schedule.ratio(0.2) == pytest.approx(1)
    assert schedule.ratio(0.6) == pytest.approx(0.5)
    assert schedule.ratio(1) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("form", [StepSchedule(), CosineSchedule(name="cosine")])
def test_a_warm_up_is_a_rising_factor_on_any_schedule(form: ScheduleBase) -> None:
    warmed = form.model_copy(update={"warmup": 0.1, "start": 0.2})
    for progress, factor in ((0.0, 0.2), (0.05, 0.6), (0.1, 1.0), (0.7, 1.0)):
        assert warmed.ratio(progress) == pytest.approx(factor * form.ratio(progress), rel=1e-12)


def test_a_one_cycle_run_is_as_far_as_its_epochs() -> None:
    phase = phases(lambda epoch: OneCycleSchedule(name="one-cycle").ratio(epoch / 37), 37)
    assert [phase(epoch) for epoch in range(38)] == pytest.approx([epoch / 37 for epoch in range(38)], abs=1e-12)


@pytest.mark.parametrize("form", [StepSchedule(), CosineSchedule(name="cosine")])
def test_a_run_is_as_far_as_a_one_cycle_run_that_has_as_much_left_to_learn(form: ScheduleBase) -> None:
    """Against integrals of the rates; a sum over so many epochs differs from them by less than an epoch."""
    epochs, cycle = 4000, OneCycleSchedule(name="one-cycle")
    phase = phases(lambda epoch: form.ratio(epoch / epochs), epochs)

    def left(schedule: ScheduleBase, since: float) -> float:
        edges = sorted({since, *(edge for edge in (0.2, 0.625, 0.75, 0.875) if edge > since), 1.0})
        return sum(quad(schedule.ratio, low, high)[0] for low, high in itertools.pairwise(edges))

    for time in (0.1, 0.4, 0.6, 0.7, 0.8, 0.95):
        share = left(form, time) / left(form, 0.0)
        moment = brentq(lambda moment, share=share: left(cycle, moment) / left(cycle, 0.0) - share, 0.0, 1.0)
        assert phase(round(time * epochs)) == pytest.approx(moment, abs=2e-3)


def test_in_steps_a_run_is_nearly_over_after_the_first_drop() -> None:
    phase = phases(lambda epoch: StepSchedule().ratio(epoch / 240), 240)
    assert [phase(epoch) for epoch in (0, 120, 150, 180, 210)] == pytest.approx([0.0, 0.54, 0.8, 0.91, 0.96], abs=0.01)


@pytest.mark.parametrize("rates", [[0.0] * 4, [-1.0] * 4, [math.nan] * 4, [math.inf, 1.0, 1.0, 1.0]])
def test_without_learning_rates_nobody_knows_how_far_a_run_is(rates: list[float]) -> None:
    assert [phases(rates.__getitem__, 4)(epoch) for epoch in range(4)] == [0.0] * 4


def test_rates_that_end_early_end_the_run_and_negative_ones_do_not_turn_it_back() -> None:
    assert [phases([-1.0, 1.0, 2.0, -1.0].__getitem__, 4)(epoch) for epoch in (0, 1, 3, 4)] == [0.0, 0.0, 1.0, 1.0]
    assert [phases([1.0, 1.0, 0.0, 0.0].__getitem__, 4)(epoch) for epoch in (0, 2, 3)] == [0.0, 1.0, 1.0]


SCHEDULERS: dict[str, tuple[dict[str, Any], int]] = {
    "CosineAnnealingWarmRestarts": ({"T_0": 4, "T_mult": 2, "eta_min": 1e-3}, 1),
    "MultiStepLR": ({"milestones": [3, 7], "gamma": 0.5}, 1),
    "ExponentialLR": ({"gamma": 0.9}, 1),
    "OneCycleLR": ({"max_lr": 0.3, "total_steps": 240, "cycle_momentum": False}, 20),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_torch_gives_the_rates_of_a_loop_of_torch(name: str) -> None:
    arguments, per_epoch = SCHEDULERS[name]
    table = {"name": "torch", "scheduler": name, "arguments": arguments, "per_epoch": per_epoch}
    recipe = make_recipe({"epochs": 12, "optimizer": {"learning_rate": 0.2}, "schedule": table})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
    for epoch in range(12):
        rates = recipe.learning_rates(epoch, 20)
        for step in range(20):
            assert rates[step] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
            optimizer.step()
            last = epoch == 11 and step == 19
            if not last and (per_epoch == 20 or step == 19):
                scheduler.step()
    # a run ends with the rate of its last step
    assert recipe.learning_rate(12) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        (
            "ReduceLROnPlateau",
            {},
            "reads a metric after every epoch, and learning rates are fixed before a run",
        ),
        ("LambdaLR", {}, "is made of a function, which a recipe cannot hold: choose from Co"),
        ("torch.optim.lr_scheduler.StepL", {"step_size": 3}, "no such scheduler .*: did you mean 'StepLR'"),
        ("StepLR", {}, "StepLR of torch refuses its arguments .*missing 1 required positional argument: 'step_size'"),
        ("CosineAnnealingLR", {"T_mx": 3}, "'schedule.arguments'.*unexpected keyword argument 'T_mx'"),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 300}, "changes the momentum.*set cycle_momentum to false"),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 9, "cycle_momentum": False}, "step 1[01] times"),
        ("ExponentialLR", {"gamma": -0.5}, "learning rate -0.025 in step 2"),
    ],
)
def test_a_scheduler_that_cannot_be_sampled_is_refused(name: str, arguments: dict[str, Any], sentence: str) -> None:
    table = {"name": "torch", "scheduler": name, "arguments": arguments}
    with pytest.raises(UserError, match=sentence):
        make_recipe({"schedule": table, "epochs": 240})


def test_the_name_chooses_the_form() -> None:
    assert isinstance(TypeAdapter(ScheduleSettings).validate_python({"name": "cosine"}), CosineSchedule)
