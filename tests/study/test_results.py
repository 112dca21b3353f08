"""The arithmetic of a study's table against scipy's paired test, and against numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tfkd_fast.study.plan import Study, make_study
from tfkd_fast.study.results import Difference, cells, contrasts, holm, lines, markdown, mean_of, paired_difference

TEXT = """
seeds = [0, 1, 2]
baseline = "ce"
[rows.ce]
title = "cross-entropy"
method = "ce"
[rows.a]
method = "tfkd"
[rows.b]
method = "tfkd"
"""


@pytest.fixture
def study() -> Study:
    return make_study("s", TEXT)


def summary(top1: float, **figures: Any) -> dict[str, Any]:
    known = {"student_epochs": 30, "holdout_top1": 40.0, "test_nll": 2.5, "test_ece": 0.1, "seconds": 60.0}
    return {"test_top1": top1, "device_name": "a machine", "precision": "fp32", **known, **figures}


def runs(**top1: dict[int, float]) -> dict[str, dict[int, dict[str, Any]]]:
    return {row: {seed: summary(value) for seed, value in values.items()} for row, values in top1.items()}


def test_mean_and_sample_standard_deviation() -> None:
    found = mean_of([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.sd == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert mean_of([5.0]).sd is None


def test_differences_are_paired_by_seed_as_scipy_pairs_them() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(36, 1, 6), random.normal(35, 1, 6)
    found = paired_difference(dict(enumerate(ours)), dict(reversed(list(enumerate(theirs)))))
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found is not None
    assert (found.pairs, found.mean) == (6, pytest.approx(np.mean(ours - theirs)))
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.p == pytest.approx(expected.pvalue)


def test_what_others_learn_from_is_not_compared_with_the_baseline() -> None:
    """And takes nothing from the others' p."""
    done = runs(ce={0: 10.0, 1: 20.0}, a={0: 11.0, 1: 21.5}, b={0: 12.0, 1: 25.0})
    alone = lines(make_study("s", TEXT.replace("[rows.b]", "[rows.b]\ncompared = false")), done)
    assert alone[2].difference is None
    assert alone[2].test_top1 == lines(make_study("s", TEXT), done)[2].test_top1
    assert alone[1].adjusted_p == alone[1].difference.p


def test_a_contrast_is_the_mean_over_its_pairs_for_each_seed() -> None:
    study = make_study("s", TEXT + '[contrasts]\nselection = [["a", "ce"], ["b", "ce"]]\nlater = [["b", "a"]]\n')
    done = runs(ce={0: 10.0, 1: 20.0, 2: 5.0}, a={0: 11.0, 1: 21.0}, b={0: 11.0, 1: 25.0, 2: 9.0})
    # Seed 0: 1 and 1; seed 1: 1 and 5; seed 2 has no a. So 1 and 3, as in the next test.
    found = contrasts(study, done)["selection"]
    assert found is not None
    assert (found.pairs, found.mean) == (2, 2.0)
    assert (found.low, found.high) == (pytest.approx(2 - 12.706, abs=1e-3), pytest.approx(2 + 12.706, abs=1e-3))
    assert "- selection: +2.00 [-10.71, +14.71] points over 2 seeds (a less ce, b less ce)" in markdown(
        study, done, [0, 1, 2], {}
    )
    assert contrasts(study, runs(a={0: 1.0}))["later"] is None


def test_two_pairs_by_hand() -> None:
    # Differences 1 and 3: mean 2, standard error 1, and t = 12.706 with one degree of freedom.
    found = paired_difference({0: 11.0, 1: 23.0}, {0: 10.0, 1: 20.0})
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert found.p == pytest.approx(0.2951672, abs=1e-6)  # 1 - 2 atan(2) / pi, the Cauchy distribution


def test_only_seeds_of_both_count_and_one_pair_has_no_interval() -> None:
    assert paired_difference({0: 3.0, 1: 9.0}, {0: 1.0, 2: 5.0}) == Difference(1, 2.0)
    assert paired_difference({0: 3.0}, {1: 1.0}) is None


def test_equal_differences_have_no_interval() -> None:
    found = paired_difference({0: 0.3, 1: 1.3}, {0: 0.1, 1: 1.1})  # equal but for their rounding
    assert found is not None
    assert (found.low, found.high, found.p) == (None, None, None)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.4 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.4; none may fall below the one before it.
    assert holm([0.03, 0.01, 0.4, 0.02]) == pytest.approx([0.06, 0.04, 0.4, 0.06])
    assert holm([0.04, 0.03]) == pytest.approx([0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_line_a_row_in_order_with_what_is_known(study: Study) -> None:
    found = lines(study, runs(ce={0: 10.0, 1: 20.0}, a={0: 11.0, 1: 23.0, 2: 5.0}))
    assert [line.row for line in found] == ["ce", "a", "b"]
    assert [line.seeds for line in found] == [(0, 1), (0, 1, 2), ()]
    assert found[0].difference is None
    assert found[1].difference == paired_difference({0: 11.0, 1: 23.0}, {0: 10.0, 1: 20.0})
    assert found[1].adjusted_p == found[1].difference.p  # the only one
    assert cells(found[1], study.seeds) == (
        *("a", "3/3", "13.00 ± 9.17", "+2.00 [-10.71, +14.71]", "0.295", "30", "40.00", "2.500", "0.100", "60"),
    )
    assert cells(found[2], study.seeds) == ("b", "0/3", *[""] * 8)


def test_p_values_are_adjusted_over_the_rows_that_have_one(study: Study) -> None:
    ce = {0: 10.0, 1: 20.0, 2: 30.0}
    found = lines(study, runs(ce=ce, a={0: 11.0, 1: 21.1, 2: 31.2}, b={0: 11.0, 1: 23.0, 2: 29.0}))
    p = [line.difference.p for line in found[1:] if line.difference and line.difference.p]
    assert p[0] < p[1]
    assert [line.adjusted_p for line in found] == [None, pytest.approx(2 * p[0]), pytest.approx(p[1])]


def test_a_figure_that_one_run_lacks_is_left_out(study: Study) -> None:
    found = lines(study, {"a": {0: summary(1.0), 1: summary(2.0, test_nll=None, holdout_top1=None)}})
    assert found[1].test_top1 == mean_of([1.0, 2.0])
    assert (found[1].test_nll, found[1].holdout_top1) == (None, None)


@pytest.mark.parametrize("lacking", [{"test_top1": None}, {"test_top1": math.nan}, "no key"])
@pytest.mark.parametrize("row", ["ce", "a"])
def test_a_run_without_a_test_top1_counts_as_missing(row: str, lacking: Any) -> None:
    """Such as one of an earlier version whose student diverged in its last step."""
    study = make_study("s", TEXT + '[contrasts]\nours = [["a", "ce"]]\n')
    done = runs(ce={0: 10.0, 1: 20.0, 2: 9.0}, a={0: 11.0, 1: 23.0, 2: 9.0})
    without = {name: {seed: run for seed, run in of.items() if (name, seed) != (row, 2)} for name, of in done.items()}
    if lacking == "no key":
        done[row][2] = {"seconds": 60.0}
    else:
        done[row][2] |= lacking
    assert lines(study, done) == lines(study, without)
    assert contrasts(study, done) == contrasts(study, without)
    text = markdown(study, done, study.seeds, {})
    assert f"Left out, because their summaries have no test top-1: {row}-seed2." in text
    assert f"points over 2 seeds (a less ce); without seed 2, which {row} lacks" in text
    assert "Left out" not in markdown(study, without, study.seeds, {})


def test_the_page_says_how_it_compares_and_what_is_missing(study: Study) -> None:
    text = markdown(study, runs(ce={0: 1.0, 1: 3.0}, a={0: 2.0, 1: 5.0}), study.seeds, {"b-seed0": "it diverged"})
    assert "| cross-entropy | 2/3 |" in text
    assert "paired by seed" in text
    assert "Rows compared with the baseline: 1;" in text
    assert "Missing: b-seed0: it diverged" in text
