"""Learning rates of the reference recipe and of the alternatives."""

import math

import pytest
from pydantic import TypeAdapter

from tfkd_fast.runs.schedule import CosineSchedule, OneCycleSchedule, OptimizerSettings, ScheduleSettings, StepSchedule


@pytest.mark.parametrize(
    ("epoch", "expected"), [(1, 0.05), (150, 0.05), (151, 0.005), (181, 5e-4), (211, 5e-5), (240, 5e-5)]
)
def test_reference_recipe_drops_after_epochs_150_180_and_210(epoch: int, expected: float) -> None:
    rate = OptimizerSettings().learning_rate * StepSchedule().ratio((epoch - 1) / 240)
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


def test_the_name_chooses_the_form() -> None:
    assert isinstance(TypeAdapter(ScheduleSettings).validate_python({"name": "cosine"}), CosineSchedule)
