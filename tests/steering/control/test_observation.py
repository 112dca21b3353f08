"""The observation entry by entry."""

import math
from dataclasses import fields, replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tfkd_fast.steering.control import Progress, observation


def test_entries_by_hand(progress: Progress) -> None:
    log_c = math.log(100)
    expected = [
        -0.5,
        -0.8,
        1 / 3,
        2 * 1.5 / log_c - 1,
        0.2,
        0.0,
        2 * 1.8 / log_c - 1,
        0.2,
        -1.0 / log_c,
        0.1,
        2 * 1.2 / log_c - 1,
        0.1,
        0.8,
        0.1,
        0.5,
        -1.0,
    ]
    seen = observation(replace(progress, least_true_mass=0.55), torch.tensor([2.0, -4.0]))
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen, torch.tensor(expected))


@pytest.mark.parametrize(("fraction", "phase", "entry"), [(0.5, 0.0, 0.0), (0.5, 0.75, 0.5), (0.75, 0.5, 0.5)])
def test_a_run_is_as_far_as_its_epochs_or_its_learning_rates_are(
    progress: Progress, fraction: float, phase: float, entry: float
) -> None:
    assert observation(replace(progress, epoch_fraction=fraction, phase=phase), torch.zeros(1))[0] == entry


@pytest.mark.parametrize(
    ("ratio", "phase"), [(1.0, 0.0), (0.1, 1 / 3), (0.01, 2 / 3), (1e-3, 1.0), (1e-9, 1.0), (0, 1)]
)
def test_learning_rate_phase_counts_decades(progress: Progress, ratio: float, phase: float) -> None:
    seen = observation(replace(progress, learning_rate_ratio=ratio), torch.zeros(1))
    assert seen[2].item() == pytest.approx(phase, abs=1e-6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=14, max_size=14))
def test_never_leaves_its_interval(progress: Progress, values: list[float]) -> None:
    names = [field.name for field in fields(Progress) if field.name != "num_classes"]
    wild = replace(progress, **dict(zip(names, values, strict=False)))
    seen = observation(wild, torch.tensor([9.0]))
    assert seen.abs().max() <= 1.0


def test_a_number_that_is_not_finite_is_refused(progress: Progress) -> None:
    with pytest.raises(ValueError, match=r"finite numbers only.*holdout_nll=nan"):
        observation(replace(progress, holdout_nll=math.nan), torch.zeros(1))
