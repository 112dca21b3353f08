"""Standardised values where there is nothing to standardise by, and Pareto fronts by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import zscore

from tfkd_fast.steering.selection.aggregation import pareto_fronts, z_scores

NAN, INF = math.nan, math.inf


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=8).filter(lambda values: len(set(values)) > 1))
def test_standardised_against_scipy(values: list[int]) -> None:
    assert z_scores(values) == pytest.approx(zscore([float(value) for value in values]), abs=1e-12)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1.0, 3.0, NAN, INF, -INF], [-1.0, 1.0, 2.0, 2.0, -2.0]),
        ([0.1, 0.1, 0.1], [0.0, 0.0, 0.0]),  # whose mean is not 0.1 in floating point
        ([0.1, NAN, 0.1], [0.0, 1.0, 0.0]),
        ([7.0, -INF], [0.0, -1.0]),
        ([NAN, NAN], [1.0, 1.0]),
        ([NAN, INF, -INF], [1.0, 1.0, -1.0]),
        ([5.0], [0.0]),
        ([-1.5e308, 1.5e308], [-1.0, 1.0]),  # their range is infinite
        ([1.0, math.nextafter(1.0, 2.0)], [-1.0, 1.0]),
        ([0.0, 5e-324], [0.0, 0.0]),  # half of the smallest number is none
    ],
)
def test_standardised_by_hand(column: list[float], expected: list[float]) -> None:
    assert z_scores(column) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.one_of(st.floats(), st.sampled_from([0.0, 1.0])), min_size=1, max_size=8))
def test_standardised_keeps_the_order_and_is_always_a_number(column: list[float]) -> None:
    scores = z_scores(column)
    assert all(map(math.isfinite, scores))
    keys = [INF if math.isnan(value) else value for value in column]
    for i, key in enumerate(keys):
        assert all(scores[i] <= scores[j] for j, other in enumerate(keys) if key <= other)


def test_pareto_fronts_by_hand() -> None:
    # (1, 2) and (4.5, 1) trade places; two equal candidates are behind both; the last is behind everyone
    ranks = [(1.0, 2.0), (4.5, 1.0), (2.0, 3.0), (4.5, 4.5), (4.5, 4.5), (6.0, 6.0)]
    assert pareto_fronts(ranks) == (1, 1, 2, 3, 3, 4)
    assert pareto_fronts([(1.0,)]) == (1,)
    assert pareto_fronts([(1.5, 1.5), (1.5, 1.5)]) == (1, 1)
