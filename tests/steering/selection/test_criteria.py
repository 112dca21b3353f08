"""Each criterion is a figure of one candidate, with its direction."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfkd_fast.steering.selection import CRITERIA, CandidateScore

SCORE = CandidateScore(top1=0.70, nll=1.1, averaged_top1=0.72, train_top1=0.85, nll_history=(2.0, 1.5, 1.3, 1.1))


@pytest.mark.parametrize(
    ("name", "higher_is_better", "value"),
    [
        ("holdout-top1", True, 0.70),
        ("holdout-nll", False, 1.1),
        ("nll-slope", False, -0.2),  # 1.5, 1.3, 1.1: the first evaluation is too old
        ("averaged-top1", True, 0.72),
        ("generalisation-gap", False, 0.15),
    ],
)
def test_value_and_direction(name: str, higher_is_better: bool, value: float) -> None:
    assert CRITERIA[name].value(SCORE) == pytest.approx(value)
    assert CRITERIA[name].higher_is_better is higher_is_better


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6))
def test_slope_against_numpy(history: list[float]) -> None:
    recent = history[-3:]
    expected = np.polyfit(np.arange(len(recent)), recent, 1)[0]
    score = CandidateScore(0.5, history[-1], None, 0.5, tuple(history))
    assert CRITERIA["nll-slope"].value(score) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("history", [(), (1.0,), (1.0, math.nan, 0.5), (math.inf, 1.0)])
def test_no_slope_without_two_finite_evaluations(history: tuple[float, ...]) -> None:
    assert math.isnan(CRITERIA["nll-slope"].value(CandidateScore(0.5, 1.0, None, 0.5, history)))


def test_only_the_averaged_accuracy_needs_averaged_weights() -> None:
    without = CandidateScore(0.7, 1.1, None, 0.8, (1.2, 1.1))
    for name, criterion in CRITERIA.items():
        if criterion.needs_average:
            with pytest.raises(ValueError, match="averaged_top1"):
                criterion.value(without)
        else:
            assert math.isfinite(criterion.value(without)), name
