"""rank_candidates against scipy.stats.rankdata, a hand table and the properties of a Borda count, by every backend.

Ranks are multiples of one half and scores are rounded to 9 decimals: every comparison is exact.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import rankdata
from torch import Tensor

from tfkd_fast.ops import CandidateRanking, backends, rank_candidates

NAN = math.nan
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
few = settings(max_examples=40)

# few distinct values, so that ties are common
tables = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 4)),
    elements=st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0, math.inf, -math.inf]),
)


def rank(
    backend: Any, criteria: Tensor, higher_is_better: Sequence[bool], weights: Sequence[float] | None = None
) -> CandidateRanking:
    """The ranking by a backend, on the CPU."""
    ranking = rank_candidates(criteria.to(backend.device), higher_is_better, weights, backend=backend.name)
    return CandidateRanking(*(result.cpu() for result in ranking))


def directions(num_criteria: int) -> list[bool]:
    return [r % 2 == 0 for r in range(num_criteria)]


def test_hand_table(backend: Any) -> None:
    criteria = torch.tensor(
        [
            # NLL, top-1, top-1 of averaged weights
            [1.20, 0.70, 0.72],
            [1.10, 0.70, 0.71],
            [1.10, 0.68, 0.74],
            [1.30, 0.69, 0.70],
        ]
    )
    ranking = rank(backend, criteria, [False, True, True])
    expected = [[3.0, 1.5, 2.0], [1.5, 1.5, 3.0], [1.5, 4.0, 1.0], [4.0, 3.0, 4.0]]
    assert ranking.ranks.tolist() == expected
    assert ranking.scores.tolist() == [6.5, 6.0, 6.5, 11.0]
    assert ranking.order.tolist() == [1, 2, 0, 3]  # 2 before 0: same score, better rank under the first criterion
    assert ranking.winner.item() == 1


def test_weights_change_the_winner(backend: Any) -> None:
    criteria = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    ranking = rank(backend, criteria, [True, True], [2.0, 1.0])
    assert ranking.scores.tolist() == [2 * 3 + 1, 2 * 2 + 2, 2 * 1 + 3]
    assert ranking.order.tolist() == [2, 1, 0]


def test_equal_scores_go_by_criteria_in_turn_and_then_by_index(backend: Any) -> None:
    # Each candidate's ranks sum to 6.
    criteria = torch.tensor([[3.0, 1.0, 2.0], [2.0, 3.0, 1.0], [2.0, 1.0, 3.0]])
    ranking = rank(backend, criteria, [False] * 3)
    assert ranking.ranks.tolist() == [[3.0, 1.5, 2.0], [1.5, 3.0, 1.0], [1.5, 1.5, 3.0]]
    assert ranking.scores.tolist() == [6.5, 5.5, 6.0]
    latin = torch.tensor([[2.0, 3.0, 1.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    ranking = rank(backend, latin, [False] * 3, [1.0, 0.0, 1.0])
    assert ranking.scores.tolist() == [4.0, 5.0, 6.0, 5.0]
    assert ranking.order.tolist() == [0, 1, 3, 2]  # 1 and 3 are equal everywhere: the lower index first
    second = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    assert rank(backend, second, [False] * 3).order.tolist() == [1, 0]  # only the second criterion can tell


def test_rounding_in_the_weighted_sum_breaks_no_tie(backend: Any) -> None:
    # 0.1 * 1 + 0.2 * 1 + 0.3 * 2 and 0.1 * 2 + 0.2 * 2 + 0.3 * 1 are both 0.9, but not in floating point.
    criteria = torch.tensor([[2.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    assert 0.1 * 1 + 0.2 * 1 + 0.3 * 2 != 0.1 * 2 + 0.2 * 2 + 0.3 * 1
    ranking = rank(backend, criteria, [False] * 3, [0.1, 0.2, 0.3])
    assert ranking.scores[0] == ranking.scores[1]
    assert ranking.winner.item() == 1  # by the first criterion


def test_nan_ranks_after_every_number(backend: Any) -> None:
    criteria = torch.tensor([[NAN, 1.0], [math.inf, NAN], [0.0, NAN], [NAN, -math.inf]])
    ascending = rank(backend, criteria, [False, False]).ranks
    assert ascending.tolist() == [[3.5, 2.0], [2.0, 3.5], [1.0, 3.5], [3.5, 1.0]]
    descending = rank(backend, criteria, [True, True]).ranks
    assert descending.tolist() == [[3.5, 1.0], [1.0, 3.5], [2.0, 3.5], [3.5, 2.0]]


@given(tables)
@few
def test_ranks_equal_those_of_scipy(backend: Any, table: np.ndarray) -> None:
    higher = directions(table.shape[1])
    expected = rankdata(np.where(higher, -table, table), method="average", axis=0)
    ranking = rank(backend, torch.from_numpy(table), higher)
    np.testing.assert_array_equal(ranking.ranks, expected)
    np.testing.assert_array_equal(ranking.scores, expected.sum(1))
    keys = (np.arange(len(table)), *reversed(expected.T), expected.sum(1))
    np.testing.assert_array_equal(ranking.order, np.lexsort(keys))
    assert ranking.winner == ranking.order[0]


@given(tables, st.lists(st.floats(0.01, 10.0), min_size=4, max_size=4))
@few
def test_a_dominated_candidate_never_wins(backend: Any, table: np.ndarray, weights: list[float]) -> None:
    higher = directions(table.shape[1])
    winner = rank(backend, torch.from_numpy(table), higher, weights[: table.shape[1]]).winner.item()
    oriented = np.where(higher, -table, table)
    dominates = (oriented <= oriented[winner]).all(1) & (oriented < oriented[winner]).any(1)
    assert not dominates.any()


@given(tables, st.randoms(use_true_random=False))
@few
def test_permuted_candidates_permute_the_result(backend: Any, table: np.ndarray, random: object) -> None:
    permutation = list(range(len(table)))
    random.shuffle(permutation)  # type: ignore[attr-defined]
    higher = directions(table.shape[1])
    before, after = (rank(backend, torch.from_numpy(t), higher) for t in (table, table[permutation]))
    assert torch.equal(after.ranks, before.ranks[permutation])
    assert torch.equal(after.scores, before.scores[permutation])
    assume(len(np.unique(table, axis=0)) == len(table))  # equal rows go by index, which a permutation changes
    assert [permutation[i] for i in after.order] == before.order.tolist()


@given(tables)
@few
def test_only_the_order_of_the_values_counts(backend: Any, table: np.ndarray) -> None:
    higher = directions(table.shape[1])
    # strictly increasing over the values drawn, to different scales for the columns; the infinities map to the ends
    rescaled = np.arctan(table) * np.array([1e-3, 1.0, 50.0, 1e6])[: table.shape[1]] + 7.0
    before, after = (rank(backend, torch.from_numpy(t), higher) for t in (table, rescaled))
    assert torch.equal(before.ranks, after.ranks)
    assert torch.equal(before.order, after.order)


def test_a_batch_ranks_each_population_by_itself(backend: Any) -> None:
    criteria = torch.randint(4, (3, 2, 5, 3), generator=torch.manual_seed(0)).float()
    together = rank(backend, criteria, [True, False, True], [1.0, 2.0, 0.5])
    for i in range(3):
        for j in range(2):
            alone = rank(backend, criteria[i, j], [True, False, True], [1.0, 2.0, 0.5])
            for ours, theirs in zip(together, alone, strict=True):
                assert torch.equal(ours[i, j], theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("candidates", "criteria"), [(1, 1), (2, 1), (31, 3), (33, 5), (64, 2), (130, 40), (1025, 1)])
def test_sizes_and_dtypes_against_scipy(backend: Any, candidates: int, criteria: int, dtype: torch.dtype) -> None:
    if backend.name == "triton" and backend.slow:  # programs of 64 candidates, and a loop over the criteria
        candidates, criteria = min(candidates, 200), min(criteria, 6)
    values = torch.randn(candidates, criteria, generator=torch.manual_seed(0)).to(dtype)  # half types: ties
    values[::5] = -0.0
    values[::10] = 0.0
    ranking = rank(backend, values, directions(criteria))
    oriented = np.where(directions(criteria), -values.double().numpy(), values.double().numpy())
    expected = rankdata(oriented, method="average", axis=0)
    np.testing.assert_array_equal(ranking.ranks, expected)
    np.testing.assert_array_equal(ranking.scores, expected.sum(1))
    np.testing.assert_array_equal(
        ranking.order, np.lexsort((np.arange(candidates), *reversed(expected.T), expected.sum(1)))
    )
    dtypes = [torch.float64, torch.float64, torch.int64, torch.int64]
    assert [result.dtype for result in ranking] == dtypes


@given(tables, st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0, 2.5, 1e-7, 100.0]), min_size=4, max_size=4))
@few
def test_scores_are_weighted_sums_to_nine_decimals(backend: Any, table: np.ndarray, weights: list[float]) -> None:
    weights = weights[: table.shape[1]]
    ranking = rank(backend, torch.from_numpy(table), directions(table.shape[1]), weights)
    for ranks, score in zip(ranking.ranks.tolist(), ranking.scores.tolist(), strict=True):
        exact = sum(Fraction(weight) * Fraction(rank) for weight, rank in zip(weights, ranks, strict=True))
        assert score == float(round(exact, 9))


@pytest.mark.parametrize("lead", [(0,), (2, 0), (1, 1, 1)])
def test_leading_axes_may_be_empty(backend: Any, lead: tuple[int, ...]) -> None:
    ranking = rank(backend, torch.zeros(*lead, 4, 2), [True, False])
    shapes = [(*lead, 4, 2), (*lead, 4), (*lead, 4), lead]
    assert [tuple(result.shape) for result in ranking] == shapes


def test_any_strides_and_no_gradient(backend: Any) -> None:
    criteria = torch.randint(4, (3, 5, 2), generator=torch.manual_seed(1)).float()
    expected = rank(backend, criteria, [True, False])
    strided = criteria.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    for ours, theirs in zip(rank(backend, strided, [True, False]), expected, strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad


def test_compiles_into_one_graph(backend: Any) -> None:
    criteria = torch.randint(4, (5, 3), generator=torch.manual_seed(0)).float().to(backend.device)

    def function(values: Tensor) -> CandidateRanking:
        return rank_candidates(values, [True, False, True], backend=backend.name)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(criteria), function(criteria), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("in_dim", [0, 1, 2])
def test_vmap_is_a_loop(backend: Any, in_dim: int) -> None:
    def function(values: Tensor) -> CandidateRanking:
        return rank_candidates(values, [True, False, True], [0.5, 1.0, 0.1], backend=backend.name)

    criteria = torch.randint(4, (6, 5, 3), generator=torch.manual_seed(2)).float().to(backend.device)
    together = torch.func.vmap(function, in_dim)(criteria.movedim(0, in_dim))
    for i in range(6):
        for ours, theirs in zip(together, function(criteria[i]), strict=True):
            assert torch.equal(ours[i], theirs)


@pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))
def test_registration() -> None:
    operator = torch.ops.tfkd_fast.rank_candidates.default
    for criteria in (torch.rand(5, 3), torch.rand(2, 3, 5).bfloat16().transpose(1, 2), torch.rand(0, 5, 3).double()):
        torch.library.opcheck(operator, (criteria, [True, False, True], [1.0, 0.5, 0.0]))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_captured_graph_follows_its_inputs_and_no_call_waits(name: str) -> None:
    criteria, later = (torch.randint(4, (3, 8, 2)).float().cuda() for _ in range(2))
    rank_candidates(criteria, [True, False], backend=name)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        rank_candidates(criteria, [True, False], backend=name)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ranking = rank_candidates(criteria, [True, False], backend=name)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    criteria.copy_(later)
    graph.replay()
    for ours, theirs in zip(ranking, rank_candidates(later, [True, False], backend=name), strict=True):
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
