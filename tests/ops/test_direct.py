"""direct: convolutions of bfloat16 and their gradients against float64, over kernels, strides, channels and maps."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.threads import using_threads
from tfkd_fast.ops import backends, direct

BF16 = torch.bfloat16
OPERATORS: Any = torch.ops.tfkd_fast
needs_direct = pytest.mark.skipif(
    not direct.serves("forward", (1, 2, 1, 1), (1, 2, 3, 3), BF16), reason="no C++ library, or no AVX512-BF16"
)


class Problem(NamedTuple):
    """The arguments of a convolution, and the gradient of its result."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    stride: int
    gradient: Tensor

    @property
    def inputs_are_known(self) -> bool:
        """Whether the gradient of the result tells the size of x."""
        return self.stride == 1 or all(size % 2 == 0 for size in self.x.shape[2:])


def problem(
    batch: int,
    inputs: int,
    outputs: int,
    height: int,
    width: int,
    *,
    taps: int = 3,
    stride: int = 1,
    weight_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(BF16)

    def maps(*sizes: int) -> Tensor:
        return draw(*sizes).to(memory_format=torch.channels_last)

    x, weight, bias = maps(batch, inputs, height, width), maps(outputs, inputs, taps, taps), draw(outputs)
    gradient = maps(batch, outputs, (height - 1) // stride + 1, (width - 1) // stride + 1)
    return Problem(x, weight.to(weight_dtype), bias.to(weight_dtype), stride, gradient)


def computed(p: Problem) -> dict[str, Tensor]:
    """Each pass, by its name."""
    results = {
        "forward": OPERATORS.direct(p.x, p.weight, p.bias, p.stride),
        "weight_gradient": OPERATORS.direct_weight_gradient(p.gradient, p.x, p.weight, p.stride),
    }
    if p.inputs_are_known:
        results["input_gradient"] = OPERATORS.direct_input_gradient(p.gradient, p.weight, p.stride)
    return results


def in_float64(p: Problem) -> dict[str, Tensor]:
    x, weight, bias, gradient = (tensor.to(BF16).double() for tensor in (p.x, p.weight, p.bias, p.gradient))
    x.requires_grad_(), weight.requires_grad_()
    y = F.conv2d(x, weight, bias, stride=p.stride, padding=weight.shape[2] // 2)
    of_x, of_weight = torch.autograd.grad(y, (x, weight), gradient)
    return {"forward": y.detach(), "input_gradient": of_x, "weight_gradient": of_weight}


def assert_rounded_once(p: Problem) -> None:
    """Of each result: sums of n terms in float32 and one rounding to its own type.

    Products are exact in float32. Each of the n additions rounds by at most 2^-24 of what is summed, and so do those of
    the partial sums, of which there are no more.
    """
    expected = in_float64(p)
    absolute = in_float64(p._replace(x=p.x.abs(), weight=p.weight.abs(), bias=p.bias.abs(), gradient=p.gradient.abs()))
    taps = p.weight.shape[2] ** 2
    terms = {
        "forward": taps * p.x.shape[1] + 1,
        "input_gradient": taps * p.weight.shape[0],
        "weight_gradient": p.gradient[:, 0].numel(),
    }
    for name, result in computed(p).items():
        rounding = 2**-24 if result.dtype == torch.float32 else 2**-8
        sums = 2 * terms[name] * 2**-24 * absolute[name]
        error = (result.double() - expected[name]).abs()
        assert result.shape == expected[name].shape
        assert (error <= rounding * (expected[name].abs() + sums) + sums).all(), name


# Channels below, at and beside a vector of 16, and odd ones; maps beside the widths of tiles, and of one row or column.
SHAPES = [
    (2, 8, 8, 9, 7),
    (1, 16, 16, 32, 32),
    (2, 16, 32, 5, 16),
    (2, 24, 40, 6, 20),
    (2, 64, 48, 8, 8),
    (2, 17, 33, 4, 4),
    (3, 3, 16, 10, 12),
    (2, 5, 64, 1, 33),
    (2, 9, 70, 33, 1),
    (4, 6, 5, 1, 1),
    (2, 2, 3, 2, 2),
    (2, 1, 1, 3, 5),
    (40, 12, 20, 8, 8),
]
KERNELS = [(3, 1), (3, 2), (1, 1), (1, 2)]


@needs_direct
@pytest.mark.parametrize("weight_dtype", [torch.float32, BF16])
@pytest.mark.parametrize(("taps", "stride"), KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pass(shape: Any, taps: int, stride: int, weight_dtype: torch.dtype) -> None:
    p = problem(*shape, taps=taps, stride=stride, weight_dtype=weight_dtype)
    assert_rounded_once(p)
    results = computed(p)
    assert results["forward"].is_contiguous(memory_format=torch.channels_last)
    assert results["weight_gradient"].dtype == weight_dtype
    assert results["weight_gradient"].stride() == p.weight.stride()


@needs_direct
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, most) for most in (4, 40, 70, 18, 34)]),
    kernel=st.sampled_from(KERNELS),
    seed=st.integers(0, 1000),
)
def test_any_shape(shape: Any, kernel: tuple[int, int], seed: int) -> None:
    assert_rounded_once(problem(*shape, taps=kernel[0], stride=kernel[1], seed=seed))


@needs_direct
def test_float32_weights_are_rounded_to_the_nearest() -> None:
    """As torch rounds them, ties to even."""
    p = problem(1, 4, 4, 5, 5)
    weight = p.weight + torch.linspace(0, 2**-7, p.weight.numel()).view_as(p.weight)
    weight[0, 0, 0, 0], weight[1, 1, 1, 1] = 1 + 2**-8, 1 + 3 * 2**-8
    for operator, arguments in ((OPERATORS.direct, (p.x,)), (OPERATORS.direct_input_gradient, (p.gradient,))):
        last = (None,) if operator is OPERATORS.direct else ()
        assert torch.equal(operator(*arguments, weight, *last), operator(*arguments, weight.to(BF16), *last))


@needs_direct
@pytest.mark.parametrize("stride", [1, 2])
def test_strides_in_memory_do_not_matter(stride: int) -> None:
    p = problem(3, 10, 18, 8, 6, stride=stride)
    spread = torch.stack([p.weight] * 2, -1)[..., 0]  # no two neighbours
    others = p._replace(x=p.x.contiguous(), weight=spread, bias=p.bias.repeat_interleave(2)[::2])
    expected = computed(p)
    for results in (computed(others), computed(p._replace(weight=p.weight.contiguous()))):
        for name, result in results.items():
            assert torch.equal(result, expected[name]), name


@needs_direct
def test_without_bias_it_adds_none() -> None:
    p = problem(2, 4, 20, 5, 5)
    assert torch.equal(OPERATORS.direct(p.x, p.weight, None), OPERATORS.direct(p.x, p.weight, torch.zeros(20)))


@needs_direct
@pytest.mark.parametrize(("taps", "stride"), KERNELS)
def test_the_same_bits_each_time_on_any_number_of_threads(taps: int, stride: int) -> None:
    p = problem(70, 16, 24, 12, 12, taps=taps, stride=stride)  # several tasks of unequal size
    expected = computed(p)
    for count in (1, 2, 3):
        with using_threads(count):
            for name, result in computed(p).items():
                assert torch.equal(result, expected[name]), name


@needs_direct
@pytest.mark.parametrize("stride", [1, 2])
def test_empty_batch(stride: int) -> None:
    p = problem(0, 4, 6, 4, 4, stride=stride)
    results = computed(p)
    assert results["forward"].shape == p.gradient.shape
    assert results["input_gradient"].shape == p.x.shape
    assert not results["weight_gradient"].any()


@needs_direct
@pytest.mark.parametrize("stride", [1, 2])
def test_nan_reaches_the_results_beside_it_and_no_others(stride: int) -> None:
    """Products with the padding would be NaN, too."""
    p = problem(2, 3, 5, 4, 20, stride=stride)
    x, gradient = p.x.clone(), p.gradient.clone()
    x[1, 2, 0, 3] = gradient[1, 2, 0, 3] = torch.nan
    affected = p._replace(x=x, gradient=gradient)
    expected = in_float64(affected)
    for name in ("forward", "input_gradient"):
        assert expected[name].isnan().any()
        assert torch.equal(computed(affected)[name].isnan(), expected[name].isnan()), name


@needs_direct
def test_registration() -> None:
    p = problem(2, 3, 20, 4, 6, stride=2)
    torch.library.opcheck(OPERATORS.direct.default, (p.x, p.weight, p.bias, 2))
    torch.library.opcheck(OPERATORS.direct.default, (p.x.contiguous(), p.weight.contiguous(), None))
    torch.library.opcheck(OPERATORS.direct_input_gradient.default, (p.gradient, p.weight, 2))
    torch.library.opcheck(OPERATORS.direct_weight_gradient.default, (p.gradient, p.x, p.weight.to(BF16), 2))


@needs_direct
@pytest.mark.parametrize(
    ("x", "weight", "bias", "stride", "message"),
    [
        ((2, 16, 4, 4), (8, 12, 3, 3), None, 1, "x must have the input channels of the weight"),
        ((2, 16, 4, 4), (8, 16, 3, 3), (9,), 1, "bias does not fit the weight"),
        ((2, 16, 4, 4), (8, 16, 5, 5), None, 1, "weight must be"),
        ((2, 16, 4, 4), (8, 16, 3, 1), None, 1, "weight must be"),
        ((2, 16, 4, 4), (8, 16, 3, 3), None, 3, "stride must be 1 or 2"),
        ((16, 4, 4), (8, 16, 3, 3), None, 1, "x must be"),
    ],
)
def test_arguments_that_do_not_fit(x: Any, weight: Any, bias: Any, stride: int, message: str) -> None:
    arguments = torch.zeros(x, dtype=BF16), torch.zeros(weight), None if bias is None else torch.zeros(bias), stride
    with pytest.raises(RuntimeError, match=message):
        OPERATORS.direct(*arguments)


@needs_direct
def test_gradients_that_do_not_fit() -> None:
    p = problem(2, 4, 6, 8, 8, stride=2)
    with pytest.raises(RuntimeError, match="gradient must have the output channels"):
        OPERATORS.direct_input_gradient(p.x, p.weight, 2)
    with pytest.raises(RuntimeError, match="gradient and x do not fit"):
        OPERATORS.direct_weight_gradient(p.gradient, p.x, p.weight, 1)


@needs_direct
def test_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = (2, 16, 9, 8), (8, 16, 3, 3)
    assert direct.serves("input_gradient", x, weight, BF16)
    assert direct.serves("weight_gradient", x, weight, BF16, 2)
    assert not direct.serves("input_gradient", x, weight, BF16, 2)
    assert not direct.serves("forward", x, (8, 16, 5, 5), BF16)
    assert not direct.serves("forward", x, weight, torch.float32)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not direct.serves("forward", x, weight, BF16)
    monkeypatch.undo()
    monkeypatch.setattr(backends, "native_library", backends.native_library._replace(missing="it is not built"))
    assert not direct.serves("forward", x, weight, BF16)
