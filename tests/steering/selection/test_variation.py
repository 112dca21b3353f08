"""Learning rates of candidates: the schedule's, times a factor that is a function of what it is for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tfkd_fast.steering.selection import learning_rate_factors

SPREAD = 0.3


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(1, 16))
def test_factors_are_a_function_of_seed_interval_and_candidate(seed: int, interval: int, candidates: int) -> None:
    factors = learning_rate_factors(SPREAD, seed, interval, candidates)
    assert factors == learning_rate_factors(SPREAD, seed, interval, candidates)
    assert factors == learning_rate_factors(SPREAD, seed, interval, 16)[:candidates]
    assert factors[0] == 1.0
    assert all(0 < factor < math.exp(7 * 0.3) for factor in factors)
    assert len(set(factors)) == candidates


@given(st.integers(0, 1000))
def test_seed_and_interval_both_count(number: int) -> None:
    factors = learning_rate_factors(SPREAD, number, number, 4)
    assert not set(factors[1:]) & set(learning_rate_factors(SPREAD, number + 1, number, 4))
    assert not set(factors[1:]) & set(learning_rate_factors(SPREAD, number, number + 1, 4))


def test_without_a_spread_all_keep_the_schedule() -> None:
    assert learning_rate_factors(0.0, 1, 2, 4) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_logarithms_are_normal_with_the_spread(spread: float) -> None:
    logs = np.log([learning_rate_factors(spread, 5, interval, 5)[1:] for interval in range(1000)]).ravel()
    assert stats.kstest(logs / spread, "norm").pvalue > 0.01
