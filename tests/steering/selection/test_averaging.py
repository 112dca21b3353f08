"""Which candidates are averaged, and that an average has to be worth it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tables import make_table
from tfkd_fast.steering.selection import CandidateScore, SelectionSettings, average_candidates

SETTINGS = make_table(SelectionSettings, budget="full", criteria=("holdout-nll", "holdout-top1"))


def score(nll: float) -> CandidateScore:
    return CandidateScore(1.0 - nll, nll, None, train_top1=0.8, nll_history=(nll,))


def judge(members: tuple[int, ...]) -> CandidateScore:
    """As if candidates had errors that cancel in pairs of an even and an odd number."""
    even = sum(slot % 2 == 0 for slot in members)
    return score(0.1 + 0.1 * abs(2 * even - len(members)))


@pytest.mark.parametrize(
    ("rule", "members"), [("all", (2, 0, 3, 1)), ("best-two", (2, 0)), ("greedy", (2, 3)), ("none", None)]
)
def test_rules_of_averages(rule: str, members: tuple[int, ...] | None) -> None:
    """Each has 0.2; two even ones have 0.3, so that the soup skips 0; 2 and 3 have 0.1, which 1 cannot better."""
    average = average_candidates(rule, [2, 0, 3, 1], [score(0.2)] * 4, SETTINGS, judge)
    assert (average and average.members) == members
    if average is not None:
        assert average.score == judge(average.members)


def test_an_average_has_two_members_at_least() -> None:
    assert average_candidates("all", [1], [score(0.2)] * 2, SETTINGS, judge) is None
    assert average_candidates("greedy", [2, 0], [score(0.2)] * 3, SETTINGS, judge) is None


@given(st.permutations(range(5)), st.dictionaries(st.frozensets(st.integers(0, 4)), st.floats(0.0, 1.0), min_size=9))
def test_a_greedy_soup_is_never_worse_than_the_best_candidate(
    order: list[int], known: dict[frozenset[int], float]
) -> None:
    """Whatever averages are worth, the soup begins with the best, and each candidate more improves it."""

    def worth(members: tuple[int, ...]) -> CandidateScore:
        return score(known.get(frozenset(members), 0.5))

    scores = [score(0.4 + 0.01 * order.index(slot)) for slot in range(5)]
    soup = average_candidates("greedy", order, scores, SETTINGS, worth)
    if soup is None:
        assert all(worth((order[0], slot)).nll >= 0.4 for slot in order[1:])
        return
    assert soup.members[0] == order[0]
    steps = [scores[order[0]].nll, *(worth(soup.members[:count]).nll for count in range(2, len(soup.members) + 1))]
    assert all(later < earlier for earlier, later in pairwise(steps))
