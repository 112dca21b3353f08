"""rank_binned_targets against a plain loop, hand examples and the families that it contains, for every backend here."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tfkd_fast.ops import backends, rank_binned_targets

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def assert_near(table: Tensor, expected: np.ndarray | Tensor) -> None:
    """To the loop in float64. 1 - true_mass, its product with the mass of the bin and the quotient are rounded by eps/2
    each, and below the normal numbers by half of the smallest number.
    """
    limits = torch.finfo(table.dtype)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(
        table.double(), expected, rtol=2 * limits.eps, atol=2 * limits.smallest_normal * limits.eps
    )


def tables(backend: Any, similarity: Tensor, true_mass: Tensor, bin_masses: Tensor, bin_starts: list[int]) -> Tensor:
    """The class tables by a backend, on the CPU."""
    on_device = (tensor.to(backend.device) for tensor in (similarity, true_mass, bin_masses))
    return rank_binned_targets(*on_device, bin_starts, backend=backend.name).cpu()


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


def test_hand_example(backend: Any) -> None:
    similarity = torch.tensor(
        [
            [0.7, 0.1, 0.15, 0.05],
            [0.2, 0.5, 0.2, 0.1],  # classes 0 and 2 tie: the lower index ranks first
            [0.3, 0.4, 0.1, 0.2],  # the true class is the least similar: its own entry does not count
            [0.0, 0.0, 0.0, 1.0],
        ]
    )
    table = tables(backend, similarity, torch.tensor(0.8), torch.tensor([0.75, 0.25]), [1, 2])
    # 0.2 * 0.75 on rank 1; 0.2 * 0.25 / 2 on each of ranks 2 and 3
    expected = [
        [0.8, 0.025, 0.15, 0.025],
        [0.15, 0.8, 0.025, 0.025],
        [0.025, 0.15, 0.8, 0.025],
        [0.15, 0.025, 0.025, 0.8],
    ]
    torch.testing.assert_close(table, torch.tensor(expected))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Values in the dtype of the table, so that the loop sees the same."""
    num_classes = draw(st.integers(2, 12))
    candidates = draw(st.integers(1, 3))
    later = draw(st.sets(st.integers(2, num_classes - 1))) if num_classes > 2 else set()
    bin_starts = [1, *sorted(later)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # few distinct values, so that ties are common; infinities and NaN among them
    similarity = rng.choice([0.0, -0.0, 0.1, 0.3, 0.5, np.inf, -np.inf, np.nan], (candidates, num_classes, num_classes))
    true_mass = rng.uniform(size=candidates)
    bin_masses = rng.dirichlet(np.ones(len(bin_starts)), candidates)
    dtype = draw(st.sampled_from(DTYPES))
    return *(torch.from_numpy(values).to(dtype) for values in (similarity, true_mass, bin_masses)), bin_starts


@given(problems())
@settings(max_examples=60)
def test_matches_a_loop_over_classes(backend: Any, problem: tuple[Tensor, Tensor, Tensor, list[int]]) -> None:
    table = tables(backend, *problem)
    similarity, true_mass, bin_masses = (tensor.double().numpy() for tensor in problem[:3])
    expected = [by_loop(similarity[p], true_mass[p], bin_masses[p], problem[3]) for p in range(len(true_mass))]
    assert_near(table, np.stack(expected))
    assert table.dtype == problem[0].dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [2, 3, 31, 33, 100, 257, 1030])
def test_sizes_and_dtypes_against_the_reference(backend: Any, num_classes: int, dtype: torch.dtype) -> None:
    if backend.slow and num_classes > (300 if dtype == torch.float32 else 100):
        pytest.skip("C^3 comparisons in an interpreter")
    generator = torch.manual_seed(num_classes)
    candidates = 1 if num_classes > 200 else 2
    if backend.name == "triton" and backend.slow and num_classes >= 100:
        # A row of 140 has two programs, the second of 12: once, the other dtypes have one program of 50.
        num_classes, candidates = 140 if num_classes > 100 else 50, 1
    similarity = torch.randn(candidates, num_classes, num_classes, generator=generator).to(dtype)  # half types: ties
    similarity[..., ::7] = similarity[..., :1]
    similarity[:, 0, 1::5] = torch.nan
    starts = [1] if num_classes == 2 else [1, 2]
    masses = torch.tensor([[0.3, 0.7], [0.9, 0.1]], dtype=dtype)[:candidates, : len(starts)]
    arguments = (similarity, torch.tensor(0.7, dtype=dtype), masses, starts)
    # the reference is tested against the loop above
    torch.testing.assert_close(
        tables(backend, *arguments), rank_binned_targets(*arguments, backend="reference"), rtol=0, atol=0
    )


def test_more_bins_than_a_kernel_expects(backend: Any) -> None:
    classes = 70 if backend.name == "triton" and backend.slow else 200  # a program reads 32 bins at a time
    similarity = torch.rand(classes, classes, dtype=torch.float64, generator=torch.manual_seed(0))
    starts = list(range(1, classes))
    masses = torch.arange(1.0, classes, dtype=torch.float64)
    masses /= masses.sum()
    table = tables(backend, similarity, torch.tensor(0.5, dtype=torch.float64), masses, starts)
    assert_near(table, by_loop(similarity.numpy(), 0.5, masses.numpy(), starts))


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_neutral_bins_give_label_smoothing(backend: Any, num_classes: int) -> None:
    bin_starts = FINE[num_classes]
    similarity = torch.rand(num_classes, num_classes, dtype=torch.float64, generator=torch.manual_seed(0))
    table = tables(
        backend, similarity, torch.tensor(0.9, dtype=torch.float64), neutral(bin_starts, num_classes), bin_starts
    )
    smoothed = torch.full_like(table, 0.1 / (num_classes - 1)).fill_diagonal_(0.9)
    torch.testing.assert_close(table, smoothed, rtol=1e-14, atol=0)
    np.testing.assert_allclose(table.sum(-1), 1.0, atol=1e-12)


def test_all_mass_in_the_first_bin_teaches_the_nearest_class(backend: Any) -> None:
    similarity = torch.rand(10, 10, generator=torch.manual_seed(1))
    masses = torch.zeros(5)
    masses[0] = 1.0
    table = tables(backend, similarity, torch.tensor(0.534), masses, FINE[10])
    others = similarity.clone().fill_diagonal_(-1.0)
    assert torch.equal(table.fill_diagonal_(0.0).argmax(-1), others.argmax(-1))
    torch.testing.assert_close(table.sum(-1), torch.full((10,), 1 - 0.534))


def test_the_true_class_is_the_argmax_from_one_half_up(backend: Any) -> None:
    similarity = torch.rand(8, 10, 10, generator=torch.manual_seed(2))
    masses = torch.distributions.Dirichlet(torch.full((5,), 0.2)).sample((8,))
    table = tables(backend, similarity, torch.linspace(0.51, 1.0, 8), masses, FINE[10])
    assert torch.equal(table.argmax(-1), torch.arange(10).expand(8, 10))


def test_a_candidate_axis_on_any_argument_serves_all(backend: Any) -> None:
    generator = torch.manual_seed(3)
    similarity = torch.rand(2, 10, 10, generator=generator)
    true_mass, masses = torch.tensor([0.6, 0.9]), torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    for own in itertools.product([False, True], repeat=3):
        arguments = [
            tensor if has_axis else tensor[0]
            for tensor, has_axis in zip((similarity, true_mass, masses), own, strict=True)
        ]
        found = tables(backend, *arguments, [1, 2, 5])
        if not any(own):
            assert found.shape == (10, 10)
            continue
        for p in range(2):
            alone = [tensor[p] if has_axis else tensor for tensor, has_axis in zip(arguments, own, strict=True)]
            assert torch.equal(found[p], tables(backend, *alone, [1, 2, 5]))


def test_dtype_follows_the_similarity_and_strides_do_not_matter(backend: Any) -> None:
    similarity = torch.rand(10, 10, dtype=torch.float64, generator=torch.manual_seed(4))
    arguments = (torch.tensor(0.9), torch.tensor([0.5, 0.5]), [1, 4])
    assert tables(backend, similarity, *arguments).dtype == torch.float64
    assert tables(backend, similarity.float(), *arguments).dtype == torch.float32
    transposed = tables(backend, similarity.T, *arguments)
    assert torch.equal(transposed, tables(backend, similarity.T.contiguous(), *arguments))
    expanded = tables(backend, similarity.expand(3, 10, 10), torch.tensor(0.9).expand(3), *arguments[1:])
    assert torch.equal(expanded, tables(backend, similarity, *arguments).expand(3, 10, 10))


def test_no_gradient(backend: Any) -> None:
    similarity, true_mass, masses = torch.rand(4, 4), torch.tensor(0.8), torch.tensor([0.5, 0.5])
    arguments = [tensor.requires_grad_() for tensor in (similarity, true_mass, masses)]
    assert not tables(backend, *arguments, [1, 2]).requires_grad


def test_compiles_into_one_graph(backend: Any) -> None:
    similarity = torch.rand(2, 10, 10, generator=torch.manual_seed(5))
    tensors = [
        tensor.to(backend.device) for tensor in (similarity, torch.tensor([0.6, 0.9]), torch.tensor([0.5, 0.3, 0.2]))
    ]

    def function(*arguments: Tensor) -> Tensor:
        return rank_binned_targets(*arguments, [1, 2, 5], backend=backend.name)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors), function(*tensors))


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, None), (None, None, 0), (2, 0, 0)])
def test_vmap_is_a_loop(backend: Any, in_dims: tuple[int | None, ...]) -> None:
    """With and without a P axis on each of the tensors, beside the mapped one."""

    def function(*arguments: Tensor) -> Tensor:
        return rank_binned_targets(*arguments, [1, 2], backend=backend.name)

    for own in itertools.product([False, True], repeat=3):
        generator = torch.manual_seed(6)
        arguments = []
        for shape, dim, has_axis in zip([(4, 4), (), (2,)], in_dims, own, strict=True):
            size = (3,) * (dim is not None) + (2,) * has_axis + shape
            tensor = torch.rand(size, generator=generator).to(backend.device)
            arguments.append(tensor if dim is None else tensor.movedim(0, dim))
        together = torch.func.vmap(function, in_dims)(*arguments)
        for i in range(3):
            mine = (a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True))
            assert torch.equal(together[i], function(*mine)), own


@pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))
def test_registration() -> None:
    similarity, true_mass, masses = torch.rand(2, 5, 5), torch.rand(2), torch.rand(2, 3)
    operator = torch.ops.tfkd_fast.rank_binned_targets.default
    for arguments in (
        (similarity, true_mass, masses),
        (similarity[0], true_mass, masses[0]),
        (similarity[0].T, true_mass[0], masses),
        (similarity[0], true_mass[0], masses[0]),
        (similarity.bfloat16(), true_mass.bfloat16(), masses.bfloat16()),
    ):
        torch.library.opcheck(operator, (*arguments, [1, 2, 3]))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_captured_graph_follows_its_inputs_and_no_call_waits(name: str) -> None:
    def random() -> list[Tensor]:
        return [torch.rand(4, 100, 100).cuda(), torch.rand(4).cuda(), torch.rand(4, 3).cuda()]

    arguments, later = random(), random()
    rank_binned_targets(*arguments, [1, 2, 9], backend=name)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        rank_binned_targets(*arguments, [1, 2, 9], backend=name)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            table = rank_binned_targets(*arguments, [1, 2, 9], backend=name)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for argument, value in zip(arguments, later, strict=True):
        argument.copy_(value)
    graph.replay()
    assert torch.equal(table, rank_binned_targets(*later, [1, 2, 9], backend=name))


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
