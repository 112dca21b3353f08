"""rank_candidates against scipy.stats.rankdata, a hand table and the properties of a Borda count."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import rankdata

from tfkd_fast.ops import rank_candidates

NAN = math.nan

# few distinct values, so that ties are common
tables = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 4)),
    elements=st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0, math.inf, -math.inf]),
)


def directions(num_criteria: int) -> list[bool]:
    return [r % 2 == 0 for r in range(num_criteria)]


def test_hand_table() -> None:
    criteria = torch.tensor(
        [
            # NLL, top-1, top-1 of averaged weights
            [1.20, 0.70, 0.72],
            [1.10, 0.70, 0.71],
            [1.10, 0.68, 0.74],
            [1.30, 0.69, 0.70],
        ]
    )
    ranking = rank_candidates(criteria, [False, True, True])
    expected = [[3.0, 1.5, 2.0], [1.5, 1.5, 3.0], [1.5, 4.0, 1.0], [4.0, 3.0, 4.0]]
    assert ranking.ranks.tolist() == expected
    assert ranking.scores.tolist() == [6.5, 6.0, 6.5, 11.0]
    assert ranking.order.tolist() == [1, 2, 0, 3]  # 2 before 0: same score, better rank under the first criterion
    assert ranking.winner.item() == 1


def test_weights_change_the_winner() -> None:
    criteria = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    ranking = rank_candidates(criteria, [True, True], [2.0, 1.0])
    assert ranking.scores.tolist() == [2 * 3 + 1, 2 * 2 + 2, 2 * 1 + 3]
    assert ranking.order.tolist() == [2, 1, 0]


def test_equal_scores_go_by_criteria_in_turn_and_then_by_index() -> None:
    # Each candidate's ranks sum to 6.
    criteria = torch.tensor([[3.0, 1.0, 2.0], [2.0, 3.0, 1.0], [2.0, 1.0, 3.0]])
    ranking = rank_candidates(criteria, [False] * 3)
    assert ranking.ranks.tolist() == [[3.0, 1.5, 2.0], [1.5, 3.0, 1.0], [1.5, 1.5, 3.0]]
    assert ranking.scores.tolist() == [6.5, 5.5, 6.0]
    latin = torch.tensor([[2.0, 3.0, 1.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    ranking = rank_candidates(latin, [False] * 3, [1.0, 0.0, 1.0])
    assert ranking.scores.tolist() == [4.0, 5.0, 6.0, 5.0]
    assert ranking.order.tolist() == [0, 1, 3, 2]  # 1 and 3 are equal everywhere: the lower index first
    second = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    assert rank_candidates(second, [False] * 3).order.tolist() == [1, 0]  # only the second criterion can tell


def test_rounding_in_the_weighted_sum_breaks_no_tie() -> None:
    # 0.1 * 1 + 0.2 * 1 + 0.3 * 2 and 0.1 * 2 + 0.2 * 2 + 0.3 * 1 are both 0.9, but not in floating point.
    criteria = torch.tensor([[2.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    assert 0.1 * 1 + 0.2 * 1 + 0.3 * 2 != 0.1 * 2 + 0.2 * 2 + 0.3 * 1
    ranking = rank_candidates(criteria, [False] * 3, [0.1, 0.2, 0.3])
    assert ranking.scores[0] == ranking.scores[1]
    assert ranking.winner.item() == 1  # by the first criterion


def test_nan_ranks_after_every_number() -> None:
    criteria = torch.tensor([[NAN, 1.0], [math.inf, NAN], [0.0, NAN], [NAN, -math.inf]])
    ascending = rank_candidates(criteria, [False, False]).ranks
    assert ascending.tolist() == [[3.5, 2.0], [2.0, 3.5], [1.0, 3.5], [3.5, 1.0]]
    descending = rank_candidates(criteria, [True, True]).ranks
    assert descending.tolist() == [[3.5, 1.0], [1.0, 3.5], [2.0, 3.5], [3.5, 2.0]]


@given(tables)
def test_ranks_equal_those_of_scipy(table: np.ndarray) -> None:
    higher = directions(table.shape[1])
    expected = rankdata(np.where(higher, -table, table), method="average", axis=0)
    ranking = rank_candidates(torch.from_numpy(table), higher)
    np.testing.assert_array_equal(ranking.ranks, expected)
    np.testing.assert_array_equal(ranking.scores, expected.sum(1))
    keys = (np.arange(len(table)), *reversed(expected.T), expected.sum(1))
    np.testing.assert_array_equal(ranking.order, np.lexsort(keys))
    assert ranking.winner == ranking.order[0]


@given(tables, st.lists(st.floats(0.01, 10.0), min_size=4, max_size=4))
def test_a_dominated_candidate_never_wins(table: np.ndarray, weights: list[float]) -> None:
    higher = directions(table.shape[1])
    winner = rank_candidates(torch.from_numpy(table), higher, weights[: table.shape[1]]).winner.item()
    oriented = np.where(higher, -table, table)
    dominates = (oriented <= oriented[winner]).all(1) & (oriented < oriented[winner]).any(1)
    assert not dominates.any()


@given(tables, st.randoms(use_true_random=False))
def test_permuted_candidates_permute_the_result(table: np.ndarray, random: object) -> None:
    permutation = list(range(len(table)))
    random.shuffle(permutation)  # type: ignore[attr-defined]
    higher = directions(table.shape[1])
    before, after = (rank_candidates(torch.from_numpy(t), higher) for t in (table, table[permutation]))
    assert torch.equal(after.ranks, before.ranks[permutation])
    assert torch.equal(after.scores, before.scores[permutation])
    assume(len(np.unique(table, axis=0)) == len(table))  # equal rows go by index, which a permutation changes
    assert [permutation[i] for i in after.order] == before.order.tolist()


@given(tables)
def test_only_the_order_of_the_values_counts(table: np.ndarray) -> None:
    higher = directions(table.shape[1])
    # strictly increasing over the values drawn, to different scales for the columns; the infinities map to the ends
    rescaled = np.arctan(table) * np.array([1e-3, 1.0, 50.0, 1e6])[: table.shape[1]] + 7.0
    before, after = (rank_candidates(torch.from_numpy(t), higher) for t in (table, rescaled))
    assert torch.equal(before.ranks, after.ranks)
    assert torch.equal(before.order, after.order)


def test_a_batch_ranks_each_population_by_itself() -> None:
    criteria = torch.randint(4, (3, 2, 5, 3), generator=torch.manual_seed(0)).float()
    together = rank_candidates(criteria, [True, False, True], [1.0, 2.0, 0.5])
    for i in range(3):
        for j in range(2):
            alone = rank_candidates(criteria[i, j], [True, False, True], [1.0, 2.0, 0.5])
            for ours, theirs in zip(together, alone, strict=True):
                assert torch.equal(ours[i, j], theirs)


def test_compiles_into_one_graph() -> None:
    criteria = torch.randint(4, (5, 3), generator=torch.manual_seed(0)).float()
    compiled = torch.compile(rank_candidates, fullgraph=True, backend="aot_eager")
    arguments = (criteria, [True, False, True])
    for ours, theirs in zip(compiled(*arguments), rank_candidates(*arguments), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("shape", "higher", "weights", "message"),
    [
        ((4,), [True], None, r"criteria must be \(\.\.\.,K,R\)"),
        ((0, 2), [True, True], None, "K >= 1"),
        ((4, 0), [], None, "R >= 1"),
        ((4, 2), [True], None, "higher_is_better must have R = 2"),
        ((4, 2), [True, True], [1.0], "weights must have R = 2"),
        ((4, 2), [True, True], [1.0, -1.0], "non-negative"),
        ((4, 2), [True, True], [1.0, NAN], "finite"),
    ],
)
def test_refuses_what_does_not_fit(
    shape: tuple[int, ...], higher: list[bool], weights: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rank_candidates(torch.zeros(shape), higher, weights)


def test_refuses_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="cannot serve rank_candidates"):
        rank_candidates(torch.zeros(4, 2), [True, True], backend="abacus")


def test_refuses_integers() -> None:
    with pytest.raises(TypeError, match="criteria"):
        rank_candidates(torch.zeros(4, 2, dtype=torch.int64), [True, True])
