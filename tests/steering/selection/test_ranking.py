"""The choice among candidates: hand tables, diverged candidates and properties."""

import math
from dataclasses import asdict, replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import zscore

from tests.support.tables import make_table
from tfkd_fast.steering.selection import CandidateScore, Selection, SelectionSettings, select

AGGREGATES = ("borda", "z-sum", "accuracy", "pareto")
SETTINGS = make_table(SelectionSettings, budget="full")


def settings(aggregate: str, **values: object) -> SelectionSettings:
    return make_table(SelectionSettings, {"budget": "full", "aggregate": aggregate, **values})


def candidate(nll: float, top1: float, averaged_top1: float) -> CandidateScore:
    return CandidateScore(top1, nll, averaged_top1, train_top1=0.8, nll_history=(1.5, nll))


TABLE = [
    candidate(1.20, 0.70, 0.72),
    candidate(1.10, 0.70, 0.71),
    candidate(1.10, 0.68, 0.74),
    candidate(1.3, 0.69, 0.7),
]


def test_hand_table_of_four_candidates_and_three_rankings() -> None:
    selection = select(TABLE, SETTINGS)
    assert selection.criteria == ("holdout-nll", "holdout-top1", "averaged-top1")
    assert selection.higher_is_better == (False, True, True)
    assert selection.values[2] == (1.10, 0.68, 0.74)
    assert selection.ranks == ((3.0, 1.5, 2.0), (1.5, 1.5, 3.0), (1.5, 4.0, 1.0), (4.0, 3.0, 4.0))
    assert selection.front == (1, 1, 1, 2)  # the last is dominated by the first two
    assert selection.aggregate == "borda"
    assert selection.scores == (6.5, 6.0, 6.5, 11.0)
    assert selection.order == (1, 2, 0, 3)
    assert selection.winner == 1


def test_the_hand_table_by_accuracy() -> None:
    """The first two have the same accuracy, and the second the better Borda score."""
    selection = select(TABLE, settings("accuracy"))
    assert selection.scores == (1.5, 1.5, 4.0, 3.0)
    assert selection.order == (1, 0, 3, 2)


def test_the_hand_table_by_standardised_sums() -> None:
    selection = select(TABLE, settings("z-sum", weights=(1, 1, 3)))
    columns = [zscore([1.2, 1.1, 1.1, 1.3]), -zscore([0.7, 0.7, 0.68, 0.69]), -zscore([0.72, 0.71, 0.74, 0.7])]
    expected = columns[0] + columns[1] + 3 * columns[2]
    assert selection.scores == pytest.approx(expected, abs=1e-9)  # rounded to 9 decimals
    assert selection.order == tuple(np.argsort(expected))


def test_standardised_sums_see_how_much_better_a_candidate_is() -> None:
    """The first two have a first and a second place each; only the accuracies differ by much."""
    scores = [candidate(1.0, 0.70, 0.7), candidate(1.01, 0.75, 0.7), candidate(1.5, 0.69, 0.7)]
    assert select(scores, settings("borda")).order == (0, 1, 2)
    assert select(scores, settings("z-sum")).order == (1, 0, 2)


def test_the_pareto_front_comes_before_a_better_borda_score() -> None:
    """The last is best in accuracy and worst in NLL: nobody dominates it, while the first dominates the second."""
    two = ("holdout-nll", "holdout-top1")
    scores = [candidate(1.0, 0.7, 0), candidate(1.1, 0.6, 0), candidate(1.2, 0.5, 0), candidate(1.3, 0.8, 0)]
    assert select(scores, settings("borda", criteria=two)).order == (0, 1, 3, 2)
    selection = select(scores, settings("pareto", criteria=two))
    assert selection.order == (0, 3, 1, 2)
    assert selection.scores == selection.front == (1, 2, 3, 1)


def test_weights_and_criteria_of_the_recipe_are_used() -> None:
    weighted = select(TABLE, make_table(SelectionSettings, budget="full", weights=(1, 1, 3)))
    assert weighted.scores == (10.5, 12.0, 8.5, 19.0)
    assert weighted.winner == 2
    accuracy = select(TABLE, make_table(SelectionSettings, budget="full", criteria=("holdout-top1",)))
    assert accuracy.winner == 0  # candidates 0 and 1 are equal: the lower index


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_diverged_candidate_comes_last(aggregate: str) -> None:
    diverged = CandidateScore(math.nan, math.nan, math.nan, math.nan, (1.2, math.nan))
    selection = select([diverged, *TABLE], settings(aggregate))
    assert selection.order[-1] == 0
    assert selection.ranks[0] == (5.0, 5.0, 5.0)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("lacking", ["nll", "top1", "averaged_top1", "train_top1"])
def test_one_score_that_is_no_number_puts_it_last(lacking: str, aggregate: str) -> None:
    best = CandidateScore(1.0, 0.01, 1.0, 0.5, (1.2, 0.01))
    assert select([best, *TABLE], settings(aggregate)).winner == 0
    assert select([replace(best, **{lacking: math.nan}), *TABLE], settings(aggregate)).order[-1] == 0


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_one_candidate_wins(aggregate: str) -> None:
    assert select(TABLE[3:], settings(aggregate)).winner == 0


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_numbers_are_plain(aggregate: str) -> None:
    def plain(value: object) -> bool:
        return all(map(plain, value)) if isinstance(value, tuple) else type(value) in (str, bool, int, float)

    assert all(plain(value) for value in asdict(select(TABLE, settings(aggregate))).values())


def test_refuses_no_candidates_and_missing_averages() -> None:
    with pytest.raises(ValueError, match="one candidate at least"):
        select([], SETTINGS)
    with pytest.raises(ValueError, match="averaged_top1"):
        select([replace(TABLE[0], averaged_top1=None)], SETTINGS)


Row = tuple[float, float, float]
"""NLL, top-1 and averaged top-1 of a candidate: lower, higher and higher is better."""

levels = st.sampled_from([0.0, 1.0, 2.0, 3.0])
figures = st.one_of(levels, st.sampled_from([math.nan, math.inf, -math.inf]))
weights = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=3, max_size=3).filter(any)
choices = st.builds(settings, st.sampled_from(AGGREGATES), criteria=st.permutations(SETTINGS.criteria), weights=weights)


def tables(figure: st.SearchStrategy[float]) -> st.SearchStrategy[list[Row]]:
    return st.lists(st.tuples(figure, figure, figure), min_size=1, max_size=6)


def select_rows(rows: list[Row], choice: SelectionSettings) -> Selection:
    return select([candidate(*row) for row in rows], choice)


def badness(row: Row) -> list[tuple[bool, float]]:
    """Each figure so that less is better, NaN worse than any number."""
    return [(math.isnan(v), 0.0 if math.isnan(v) else v) for v in (row[0], -row[1], -row[2])]


def is_dominated(row: Row, other: Row) -> bool:
    pairs = list(zip(badness(row), badness(other), strict=True))
    return all(its <= mine for mine, its in pairs) and any(its < mine for mine, its in pairs)


@given(tables(figures), choices)
def test_a_dominated_candidate_never_comes_before_the_one_that_dominates_it(
    rows: list[Row], choice: SelectionSettings
) -> None:
    selection = select_rows(rows, choice)
    place = [selection.order.index(slot) for slot in range(len(rows))]
    for slot, row in enumerate(rows):
        above = [other for other, better in enumerate(rows) if is_dominated(row, better)]
        assert all(place[other] < place[slot] for other in above)
        assert selection.front[slot] == 1 + max((selection.front[other] for other in above), default=0)
    assert selection.front[selection.winner] == 1


@given(tables(figures), choices, st.randoms())
def test_permuting_the_candidates_permutes_the_result(
    rows: list[Row], choice: SelectionSettings, random: Random
) -> None:
    places = list(range(len(rows)))
    random.shuffle(places)
    selection, permuted = select_rows(rows, choice), select_rows([rows[place] for place in places], choice)
    assert permuted.scores == tuple(selection.scores[place] for place in places)
    assert permuted.front == tuple(selection.front[place] for place in places)
    # equal candidates may change places: those with the same ranks under all criteria
    assert [permuted.ranks[slot] for slot in permuted.order] == [selection.ranks[slot] for slot in selection.order]


rescalings = st.lists(st.floats(-1e300, 1e300), min_size=4, max_size=4, unique=True).map(sorted)
by_rank = choices.filter(lambda choice: choice.aggregate != "z-sum")


@given(tables(st.one_of(levels, st.just(math.nan))), by_rank, st.tuples(rescalings, rescalings, rescalings))
def test_ranks_forget_the_scale_of_a_criterion(
    rows: list[Row], choice: SelectionSettings, scales: tuple[list[float], ...]
) -> None:
    rescaled = [
        tuple(v if math.isnan(v) else scale[int(v)] for v, scale in zip(row, scales, strict=True)) for row in rows
    ]
    before, after = select_rows(rows, choice), select_rows(rescaled, choice)
    assert (after.order, after.scores, after.front) == (before.order, before.scores, before.front)


lines = st.tuples(st.integers(1, 1000), st.integers(-1000, 1000))


@given(tables(figures), weights, st.tuples(lines, lines, lines))
def test_standardised_sums_forget_unit_and_origin(
    rows: list[Row], weight: list[float], units: tuple[tuple[int, int], ...]
) -> None:
    """Small integers: the lines are exact in floating point."""
    choice = settings("z-sum", weights=weight)
    rescaled = [tuple(a * v + b for v, (a, b) in zip(row, units, strict=True)) for row in rows]
    before, after = select_rows(rows, choice), select_rows(rescaled, choice)
    assert (after.order, after.scores) == (before.order, before.scores)
