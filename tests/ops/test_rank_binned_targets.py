"""rank_binned_targets against a plain loop, hand examples and the families that it contains."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tfkd_fast.ops import rank_binned_targets

FINE = {2: [1], 10: [1, 2, 3, 5, 9], 100: [1, 2, 3, 5, 9, 17, 33, 65]}


def by_loop(similarity: np.ndarray, true_mass: float, bin_masses: np.ndarray, bin_starts: list[int]) -> np.ndarray:
    """One table, a class at a time, in float64."""
    num_classes = len(similarity)
    ends = [*bin_starts[1:], num_classes]
    table = np.zeros((num_classes, num_classes))
    for label in range(num_classes):
        others = [c for c in range(num_classes) if c != label]
        # sorted() is stable, so ties stay in class order; NaN goes last
        others.sort(key=lambda c: (np.isnan(similarity[label, c]), -np.nan_to_num(similarity[label, c], nan=0.0)))
        for rank, other in enumerate(others, start=1):
            j = max(index for index, start in enumerate(bin_starts) if start <= rank)
            table[label, other] = (1 - true_mass) * bin_masses[j] / (ends[j] - bin_starts[j])
        table[label, label] = true_mass
    return table


def neutral(bin_starts: list[int], num_classes: int) -> Tensor:
    ends = [*bin_starts[1:], num_classes]
    sizes = torch.tensor([end - start for start, end in zip(bin_starts, ends, strict=True)], dtype=torch.float64)
    return sizes / sizes.sum()


def test_hand_example() -> None:
    similarity = torch.tensor(
        [
            [0.7, 0.1, 0.15, 0.05],
            [0.2, 0.5, 0.2, 0.1],  # classes 0 and 2 tie: the lower index ranks first
            [0.3, 0.4, 0.1, 0.2],  # the true class is the least similar: its own entry does not count
            [0.0, 0.0, 0.0, 1.0],
        ]
    )
    table = rank_binned_targets(similarity, torch.tensor(0.8), torch.tensor([0.75, 0.25]), [1, 2])
    # 0.2 * 0.75 on rank 1; 0.2 * 0.25 / 2 on each of ranks 2 and 3
    expected = [
        [0.8, 0.025, 0.15, 0.025],
        [0.15, 0.8, 0.025, 0.025],
        [0.025, 0.15, 0.8, 0.025],
        [0.15, 0.025, 0.025, 0.8],
    ]
    torch.testing.assert_close(table, torch.tensor(expected))


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    num_classes = draw(st.integers(2, 12))
    candidates = draw(st.integers(1, 3))
    later = draw(st.sets(st.integers(2, num_classes - 1))) if num_classes > 2 else set()
    bin_starts = [1, *sorted(later)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # few distinct values, so that ties are common; infinities and NaN among them
    similarity = rng.choice([0.0, -0.0, 0.1, 0.3, 0.5, np.inf, -np.inf, np.nan], (candidates, num_classes, num_classes))
    true_mass = rng.uniform(size=candidates)
    bin_masses = rng.dirichlet(np.ones(len(bin_starts)), candidates)
    return similarity, true_mass, bin_masses, bin_starts


@given(problems())
def test_matches_a_loop_over_classes(problem: tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]) -> None:
    similarity, true_mass, bin_masses, bin_starts = problem
    table = rank_binned_targets(*map(torch.from_numpy, (similarity, true_mass, bin_masses)), bin_starts)
    expected = np.stack(
        [by_loop(similarity[p], true_mass[p], bin_masses[p], bin_starts) for p in range(len(true_mass))]
    )
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-14)
    np.testing.assert_allclose(table.sum(-1).numpy(), 1.0, atol=1e-12)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_neutral_bins_give_label_smoothing(num_classes: int) -> None:
    bin_starts = FINE[num_classes]
    similarity = torch.rand(num_classes, num_classes, dtype=torch.float64, generator=torch.manual_seed(0))
    table = rank_binned_targets(
        similarity, torch.tensor(0.9, dtype=torch.float64), neutral(bin_starts, num_classes), bin_starts
    )
    smoothed = torch.full_like(table, 0.1 / (num_classes - 1)).fill_diagonal_(0.9)
    torch.testing.assert_close(table, smoothed, rtol=1e-14, atol=0)


def test_all_mass_in_the_first_bin_teaches_the_nearest_class() -> None:
    similarity = torch.rand(10, 10, generator=torch.manual_seed(1))
    masses = torch.zeros(5)
    masses[0] = 1.0
    table = rank_binned_targets(similarity, torch.tensor(0.534), masses, FINE[10])
    others = similarity.clone().fill_diagonal_(-1.0)
    assert torch.equal(table.fill_diagonal_(0.0).argmax(-1), others.argmax(-1))
    torch.testing.assert_close(table.sum(-1), torch.full((10,), 1 - 0.534))


def test_the_true_class_is_the_argmax_from_one_half_up() -> None:
    similarity = torch.rand(8, 10, 10, generator=torch.manual_seed(2))
    masses = torch.distributions.Dirichlet(torch.full((5,), 0.2)).sample((8,))
    table = rank_binned_targets(similarity, torch.linspace(0.51, 1.0, 8), masses, FINE[10])
    assert torch.equal(table.argmax(-1), torch.arange(10).expand(8, 10))


def test_a_candidate_axis_on_any_argument_serves_all() -> None:
    generator = torch.manual_seed(3)
    similarity = torch.rand(10, 10, generator=generator)
    true_mass, masses = torch.tensor([0.6, 0.9]), torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    starts = [1, 2, 5]
    each = [rank_binned_targets(similarity, true_mass[p], masses[p], starts) for p in range(2)]
    assert torch.equal(rank_binned_targets(similarity, true_mass, masses, starts), torch.stack(each))
    assert torch.equal(rank_binned_targets(similarity.expand(2, 10, 10), true_mass, masses, starts), torch.stack(each))
    shared_mass = rank_binned_targets(similarity, true_mass[0], masses, starts)
    assert torch.equal(shared_mass[1], rank_binned_targets(similarity, true_mass[0], masses[1], starts))
    shared_bins = rank_binned_targets(similarity, true_mass, masses[0], starts)
    assert torch.equal(shared_bins[1], rank_binned_targets(similarity, true_mass[1], masses[0], starts))


def test_dtype_follows_the_similarity_and_strides_do_not_matter() -> None:
    similarity = torch.rand(10, 10, dtype=torch.float64, generator=torch.manual_seed(4))
    arguments = (torch.tensor(0.9), torch.tensor([0.5, 0.5]), [1, 4])
    assert rank_binned_targets(similarity, *arguments).dtype == torch.float64
    assert rank_binned_targets(similarity.float(), *arguments).dtype == torch.float32
    transposed = rank_binned_targets(similarity.T, *arguments)
    assert torch.equal(transposed, rank_binned_targets(similarity.T.contiguous(), *arguments))


def test_compiles_into_one_graph() -> None:
    similarity = torch.rand(2, 10, 10, generator=torch.manual_seed(5))
    arguments = (similarity, torch.tensor([0.6, 0.9]), torch.tensor([0.5, 0.3, 0.2]), [1, 2, 5])
    compiled = torch.compile(rank_binned_targets, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), rank_binned_targets(*arguments))


@pytest.mark.parametrize(
    ("similarity", "true_mass", "bin_masses", "bin_starts", "message"),
    [
        ((3, 4), (), (1,), [1], r"similarity must be \(C,C\)"),
        ((1, 1), (), (1,), [1], "C >= 2"),
        ((4, 4), (2, 1), (1,), [1], r"true_mass must be \(\)"),
        ((4, 4), (), (3,), [1, 2], "J = 2"),
        ((2, 4, 4), (3,), (1,), [1], "same P"),
        ((4, 4), (), (1,), [2], "begin with 1"),
        ((4, 4), (), (2,), [1, 1], "ascend"),
        ((4, 4), (), (2,), [1, 4], "at most C-1 = 3"),
        ((4, 4), (), (0,), [], "J = 0|begin with 1"),
    ],
)
def test_refuses_what_does_not_fit(
    similarity: tuple[int, ...],
    true_mass: tuple[int, ...],
    bin_masses: tuple[int, ...],
    bin_starts: list[int],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        rank_binned_targets(torch.rand(similarity), torch.rand(true_mass), torch.rand(bin_masses), bin_starts)


def test_refuses_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="cannot serve rank_binned_targets"):
        rank_binned_targets(torch.rand(3, 3), torch.tensor(0.9), torch.ones(1), [1], backend="abacus")


def test_refuses_counts() -> None:
    with pytest.raises(TypeError, match="similarity"):
        rank_binned_targets(torch.zeros(3, 3, dtype=torch.int64), torch.tensor(0.9), torch.ones(1), [1])
