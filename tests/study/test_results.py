"""The arithmetic of a study's table against scipy's paired test, and against numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.study.made_up import ROWS, results_of, runs, summary
from tfkd_fast.study.results import Difference, Mean, ResultRow, cells, holm, mean_of, notes, paired_difference
from tfkd_fast.study.stored import markdown
from tfkd_fast.study.words import finding_words


def test_mean_and_sample_standard_deviation() -> None:
    found = mean_of([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.sd == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    interval = stats.t.interval(0.95, 2, 3.0, (7 / 3) ** 0.5)
    assert (found.low, found.high) == pytest.approx(interval)
    assert mean_of([5.0]) == Mean(5.0, None, None, None)
    assert mean_of([5.0, 5.0]) == Mean(5.0, 0.0, None, None)


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
    alone = results_of(done, rows=ROWS | {"b": ResultRow("b", compared=False)}).lines
    assert alone[2].difference is None
    assert alone[2].test_top1 == results_of(done).lines[2].test_top1
    assert alone[1].adjusted_p == alone[1].difference.p


def test_a_contrast_is_the_mean_over_its_pairs_for_each_seed() -> None:
    contrasts = {"selection": (("a", "ce"), ("b", "ce")), "later": (("b", "a"),)}
    done = runs(ce={0: 10.0, 1: 20.0, 2: 5.0}, a={0: 11.0, 1: 21.0}, b={0: 11.0, 1: 25.0, 2: 9.0})
    # Seed 0: 1 and 1; seed 1: 1 and 5; seed 2 has no a. So 1 and 3, as in the next test.
    found = results_of(done, contrasts=contrasts).contrast_differences["selection"]
    assert found is not None
    assert (found.pairs, found.mean) == (2, 2.0)
    assert (found.low, found.high) == (pytest.approx(2 - 12.706, abs=1e-3), pytest.approx(2 + 12.706, abs=1e-3))
    text = markdown(results_of(done, contrasts=contrasts))
    assert "- selection: +2.00 [-10.71, +14.71] points over 2 seeds (a less ce, b less ce)" in text
    assert results_of(runs(a={0: 1.0}), contrasts=contrasts).contrast_differences["later"] is None


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


def test_a_line_a_row_in_order_with_what_is_known() -> None:
    found = results_of(runs(ce={0: 10.0, 1: 20.0}, a={0: 11.0, 1: 23.0, 2: 5.0})).lines
    assert [line.row for line in found] == ["ce", "a", "b"]
    assert [line.seeds for line in found] == [(0, 1), (0, 1, 2), ()]
    assert found[0].difference is None
    assert found[1].difference == paired_difference({0: 11.0, 1: 23.0}, {0: 10.0, 1: 20.0})
    assert found[1].adjusted_p == found[1].difference.p  # the only one
    assert cells(found[1]) == (
        *("a", "3/3", "13.00 ± 9.17", "+2.00 [-10.71, +14.71]", "0.295", "30", "40.00", "2.500", "0.100", "60"),
    )
    assert cells(found[2]) == ("b", "0/3", *[""] * 8)


def test_p_values_are_adjusted_over_the_rows_that_have_one() -> None:
    ce = {0: 10.0, 1: 20.0, 2: 30.0}
    found = results_of(runs(ce=ce, a={0: 11.0, 1: 21.1, 2: 31.2}, b={0: 11.0, 1: 23.0, 2: 29.0})).lines
    p = [line.difference.p for line in found[1:] if line.difference and line.difference.p]
    assert p[0] < p[1]
    assert [line.adjusted_p for line in found] == [None, pytest.approx(2 * p[0]), pytest.approx(p[1])]


def test_a_figure_that_one_run_lacks_is_left_out() -> None:
    found = results_of({"a": {0: summary(1.0), 1: summary(2.0, test_nll=None, holdout_top1=None)}}).lines
    assert found[1].test_top1 == mean_of([1.0, 2.0])
    assert (found[1].test_nll, found[1].holdout_top1) == (None, None)


@pytest.mark.parametrize("lacking", [{"test_top1": None}, {"test_top1": math.nan}, "no key"])
@pytest.mark.parametrize("row", ["ce", "a"])
def test_a_run_without_a_test_top1_counts_as_missing(row: str, lacking: Any) -> None:
    """Such as one of an earlier version whose student diverged in its last step."""
    contrasts = {"ours": (("a", "ce"),)}
    done = runs(ce={0: 10.0, 1: 20.0, 2: 9.0}, a={0: 11.0, 1: 23.0, 2: 9.0})
    without = {name: {seed: run for seed, run in of.items() if (name, seed) != (row, 2)} for name, of in done.items()}
    if lacking == "no key":
        done[row][2] = {"seconds": 60.0}
    else:
        done[row][2] |= lacking
    with_it, alone = results_of(done, contrasts=contrasts), results_of(without, contrasts=contrasts)
    assert with_it.lines == alone.lines
    assert with_it.contrast_differences == alone.contrast_differences
    text = markdown(with_it)
    assert f"Left out, because their summaries have no test top-1: {row}-seed2." in text
    assert f"points over 2 seeds (a less ce); without seed 2, which {row} lacks" in text
    assert "Left out" not in markdown(alone)


@pytest.mark.parametrize(
    ("done", "best", "words"),
    [
        ({}, None, "no run is finished and tested"),
        ({"a": {0: 9.0}}, "a", "a has the highest test top-1 so far, 9.00 %; nothing is known yet of cross-entropy"),
        ({"ce": {0: 9.0}}, "ce", "cross-entropy has a test top-1 of 9.00 %; there is no other row"),
        (
            {"ce": {0: 9.0}, "a": {0: 9.5}},
            "a",
            "9.50 %: +0.50 points to cross-entropy, paired over 1 seed. Whether other",
        ),
        # b has the higher mean, of another seed alone, which says nothing of how it does beside the baseline
        (
            {"ce": {0: 9.0, 1: 5.0}, "a": {0: 8.0, 1: 4.5}, "b": {2: 60.0}},
            "ce",
            "No row is better than cross-entropy, the baseline (7.00 % test top-1), under the same seeds",
        ),
        (
            {"ce": {0: 9.0, 1: 5.0, 2: 7.0}, "a": {0: 10.0, 1: 6.01, 2: 8.02}, "b": {0: 8.0, 1: 4.01, 2: 6.02}},
            "a",
            "+1.01 [+0.99, +1.03] points to cross-entropy, paired over 3 seeds. Rows that differ from the baseline by "
            "p < 0.05, adjusted by Holm's method, are 2 of 2: 1 better, 1 worse.",
        ),
    ],
)
def test_what_was_found(done: dict[str, dict[int, float]], best: str | None, words: str) -> None:
    found = results_of(runs(**done))
    assert (found.best and found.best.row) == best
    assert words in finding_words(found)


def test_rows_that_hold_out_other_images_are_named() -> None:
    done = runs(ce={0: 9.0}, a={0: 9.5}, b={0: 9.7})
    for row, images in (("ce", 100), ("a", 100), ("b", 200)):
        done[row][0]["holdout_images"] = images
    note = "Other images than the baseline's are held out in: b; only test figures compare there."
    assert note in notes(results_of(done))
    done["b"][0]["holdout_images"] = 0  # a replay, which has no held-out figures
    assert not any("are held out in" in sentence for sentence in notes(results_of(done)))
