"""The choice among candidates: hand tables, diverged candidates and properties."""

import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfkd_fast.selection import CandidateScore, SelectionSettings, select

SETTINGS = SelectionSettings(budget="full")


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
    assert selection.scores == (6.5, 6.0, 6.5, 11.0)
    assert selection.order == (1, 2, 0, 3)
    assert selection.winner == 1


def test_weights_and_criteria_of_the_recipe_are_used() -> None:
    weighted = select(TABLE, SelectionSettings(budget="full", weights=(1, 1, 3)))
    assert weighted.scores == (10.5, 12.0, 8.5, 19.0)
    assert weighted.winner == 2
    accuracy = select(TABLE, SelectionSettings(budget="full", criteria=("holdout-top1",)))
    assert accuracy.winner == 0  # candidates 0 and 1 are equal: the lower index


def test_a_diverged_candidate_comes_last() -> None:
    diverged = CandidateScore(math.nan, math.nan, math.nan, math.nan, (1.2, math.nan))
    selection = select([diverged, *TABLE], SETTINGS)
    assert selection.order[-1] == 0
    assert selection.ranks[0] == (5.0, 5.0, 5.0)


def test_one_candidate_wins() -> None:
    assert select(TABLE[3:], SETTINGS).winner == 0


def test_numbers_are_plain() -> None:
    def plain(value: object) -> bool:
        return all(map(plain, value)) if isinstance(value, tuple) else type(value) in (str, bool, int, float)

    assert all(plain(value) for value in asdict(select(TABLE, SETTINGS)).values())


def test_refuses_no_candidates_and_missing_averages() -> None:
    with pytest.raises(ValueError, match="one candidate at least"):
        select([], SETTINGS)
    with pytest.raises(ValueError, match="averaged_top1"):
        select([replace(TABLE[0], averaged_top1=None)], SETTINGS)


accuracies = st.sampled_from([0.60, 0.65, 0.70, 0.75])
candidates = st.builds(candidate, st.sampled_from([0.9, 1.0, 1.1]), accuracies, accuracies)


@given(st.lists(candidates, min_size=1, max_size=6))
def test_the_winner_is_dominated_by_nobody(scores: list[CandidateScore]) -> None:
    winner = scores[select(scores, SETTINGS).winner]
    for other in scores:
        no_worse = other.nll <= winner.nll and other.top1 >= winner.top1 and other.averaged_top1 >= winner.averaged_top1
        assert not no_worse or other == winner
