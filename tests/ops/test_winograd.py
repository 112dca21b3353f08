"""winograd against direct convolution in float64: exactly where nothing is rounded, by its error where something is."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.threads import using_threads
from tfkd_fast.ops import backends, winograd

BF16 = torch.bfloat16
OPERATORS = torch.ops.tfkd_fast
SERVED = winograd.serves("forward", (1, 1, 1, 1), (1, 1, 3, 3), BF16)
pytestmark = pytest.mark.skipif(not SERVED, reason="it needs the C++ library and a processor with AVX512-BF16")
DRAWS = {
    "normal": lambda *size, generator: torch.randn(size, generator=generator),
    "after ReLU": lambda *size, generator: (torch.randn(size, generator=generator) + 0.3).relu(),
    "heavy tails": lambda *size, generator: torch.randn(size, generator=generator) ** 3,
}


class Problem(NamedTuple):
    """Of a layer: its arguments, and the gradient of its result."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    gradient: Tensor

    def cast(self, dtype: torch.dtype) -> "Problem":
        """All in one dtype."""
        return Problem(*(None if tensor is None else tensor.to(dtype) for tensor in self))


def problem(
    shape: Any, distribution: str = "normal", *, bias: bool = False, weight_dtype: torch.dtype = torch.float32
) -> Problem:
    """Draw one of `shape` (B,C,K,H,W) in float32, or the weight and the bias in another dtype, channels last."""
    batch, inputs, outputs, height, width = shape
    generator = torch.Generator().manual_seed(0)
    x = DRAWS[distribution](batch, inputs, height, width, generator=generator)
    weight = DRAWS["normal"](outputs, inputs, 3, 3, generator=generator) / (9 * inputs) ** 0.5
    offset = DRAWS["normal"](outputs, generator=generator).to(weight_dtype) if bias else None
    gradient = DRAWS["normal" if distribution == "after ReLU" else distribution](
        batch, outputs, height, width, generator=generator
    )
    last = {"memory_format": torch.channels_last}
    return Problem(x.to(**last), weight.to(weight_dtype, **last), offset, gradient.to(**last))


def by_winograd(p: Problem) -> list[Tensor]:
    """The result, the gradient of x, the gradient of the weight."""
    x, gradient = p.x.to(BF16), p.gradient.to(BF16)
    return [
        OPERATORS.winograd(x, p.weight, p.bias),
        OPERATORS.winograd_input_gradient(gradient, p.weight),
        OPERATORS.winograd_weight_gradient(gradient, x, p.weight),
    ]


def by_torch(p: Problem) -> list[Tensor]:
    """The same by direct convolution in the dtype of the problem."""
    sizes = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        p.gradient, p.x, p.weight, None, *sizes, [True, True, False]
    )
    return [F.conv2d(p.x, p.weight, p.bias, padding=1), of_x, of_weight]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("weight_dtype", [torch.float32, BF16])
@pytest.mark.parametrize("distribution", DRAWS)
@pytest.mark.parametrize(
    "shape", [(1, 16, 16, 9, 5), (2, 48, 20, 7, 7), (6, 32, 64, 16, 16), (32, 128, 96, 4, 4), (3, 512, 256, 4, 6)]
)
def test_the_error_is_at_most_twice_that_of_a_convolution_in_bfloat16(
    shape: Any, distribution: str, weight_dtype: torch.dtype
) -> None:
    """Both are given numbers in float32, rounded to bfloat16."""
    p = problem(shape, distribution)
    exact, plain = by_torch(p.cast(torch.float64)), by_torch(p.cast(BF16))
    actual = by_winograd(p._replace(weight=p.weight.to(weight_dtype)))
    for ours, theirs, expected in zip(actual, plain, exact, strict=True):
        assert relative_error(ours, expected) <= 2 * relative_error(theirs, expected)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5), st.integers(1, 70), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)]),
    bias=st.booleans(),
    weight_dtype=st.sampled_from([torch.float32, BF16]),
)
def test_sums_of_small_integers_are_exact(shape: Any, bias: bool, weight_dtype: torch.dtype) -> None:
    """Transformed inputs are integers up to 8, weights that 4 divides become integers up to 9."""
    p = problem(shape, bias=bias)
    p = Problem(p.x.round().clamp(-2, 2), 4 * p.weight.sign(), p.bias, p.gradient.round().clamp(-2, 2))
    p = p._replace(bias=None if p.bias is None else p.bias.round())
    exact = by_torch(p.cast(torch.float64))
    typed = p._replace(weight=p.weight.to(weight_dtype), bias=None if p.bias is None else p.bias.to(weight_dtype))
    for actual, expected, dtype in zip(by_winograd(typed), exact, [BF16, BF16, weight_dtype], strict=True):
        assert actual.dtype == dtype
        assert torch.equal(actual, expected.to(dtype))


def test_many_tiles_are_exact() -> None:
    """More than are transformed at once, and an odd number of them."""
    p = problem((37, 16, 40, 15, 13))
    p = Problem(p.x.round().clamp(-2, 2), 4 * p.weight.sign(), None, p.gradient.round().clamp(-2, 2))
    exact = by_torch(p.cast(torch.float64))
    for actual, expected in zip(by_winograd(p), exact, strict=True):
        assert torch.equal(actual, expected.to(actual.dtype))


def test_strides_do_not_matter() -> None:
    p = problem((3, 40, 24, 5, 4), bias=True)
    spread = torch.stack([p.weight] * 2, -1)[..., 0]  # no two neighbours, and not dense
    strided = Problem(p.x.contiguous(), spread, torch.stack([p.bias] * 2, -1)[:, 0], p.gradient.contiguous())
    results = by_winograd(strided)
    for actual, expected in zip(results, by_winograd(p), strict=True):
        assert torch.equal(actual, expected)
    assert all(result.is_contiguous(memory_format=torch.channels_last) for result in results[:2])
    assert results[2].stride() == torch.empty_like(spread).stride()
    assert by_winograd(p)[2].stride() == p.weight.stride()


def test_the_same_bits_twice_and_by_any_number_of_threads() -> None:
    p = problem((21, 64, 96, 9, 8), bias=True)
    results = []
    for threads in (1, 2, 3, 1):
        with using_threads(threads):
            results.append(by_winograd(p))
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_empty_batch() -> None:
    p = problem((0, 16, 32, 4, 4))
    y, of_x, of_weight = by_winograd(p)
    assert y.shape == (0, 32, 4, 4)
    assert of_x.shape == (0, 16, 4, 4)
    assert not of_weight.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_the_tiles_beside_them(value: float) -> None:
    p = problem((2, 16, 32, 8, 8))
    p.x[1, 3, 2, 5] = value
    y, _, of_weight = by_winograd(p)
    finite = y.isfinite().all(1)
    tiles = torch.zeros(2, 8, 8, dtype=torch.bool)
    tiles[1, :4, 4:] = True
    assert not finite[1, 1:4, 4:7].any()  # all that it reaches by the definition
    assert finite[~tiles].all()
    assert not of_weight[:, 3].isfinite().any()
    assert of_weight[:, :3].isfinite().all()


def test_registration() -> None:
    p = problem((2, 16, 24, 5, 4), bias=True)
    x, gradient = p.x.to(BF16), p.gradient.to(BF16)
    torch.library.opcheck(OPERATORS.winograd.default, (x, p.weight, p.bias))
    torch.library.opcheck(OPERATORS.winograd.default, (x.contiguous(), p.weight.to(BF16), None))
    torch.library.opcheck(OPERATORS.winograd_input_gradient.default, (gradient, p.weight))
    torch.library.opcheck(OPERATORS.winograd_weight_gradient.default, (gradient, x, p.weight.contiguous()))


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((2, 16, 4, 4), (8, 12, 3, 3), None, "x must have the input channels of the weight"),
        ((2, 16, 4, 4), (8, 16, 3, 3), (9,), "bias does not fit the weight"),
        ((2, 16, 4, 4), (8, 16, 1, 1), None, r"weight must be \(K,C,3,3\)"),
        ((16, 4, 4), (8, 16, 3, 3), None, r"x must be \(B,channels,H,W\) of bfloat16"),
    ],
)
def test_arguments_that_do_not_fit(x: Any, weight: Any, bias: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        OPERATORS.winograd(torch.zeros(x, dtype=BF16), torch.zeros(weight), None if bias is None else torch.zeros(bias))


def test_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (2, 16, 4, 4), (8, 16, 3, 3)
    assert winograd.serves("input_gradient", *shapes, BF16)
    assert not winograd.serves("forward", *shapes, torch.float32)
    assert not winograd.serves("forward", shapes[0], (8, 16, 1, 1), BF16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not winograd.serves("forward", *shapes, BF16)
    monkeypatch.undo()
    monkeypatch.setattr(backends, "native_library", backends.native_library._replace(missing="it is not built"))
    assert not winograd.serves("forward", *shapes, BF16)
