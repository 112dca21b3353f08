"""conv3x3 against float64 and against F.conv2d, for both of its backends; which calls the compiled one serves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tfkd_fast import ops
from tfkd_fast.ops import backends, conv3x3, conv_algorithms
from tfkd_fast.ops.conv_algorithms import Algorithms, Convolution

BF16 = torch.bfloat16
CPP_MISSING = backends.operators["conv3x3"]["cpp"].refuses(torch.empty(0, dtype=BF16))
needs_cpp = pytest.mark.skipif(CPP_MISSING is not None, reason=str(CPP_MISSING))
BACKENDS = ["reference", pytest.param("cpp", marks=needs_cpp)]
# B, C, K, H, W: every kind of position there is and is not, the last in three parts, of which one is smaller.
SHAPES = [
    (2, 3, 5, 1, 1),
    (2, 3, 5, 1, 2),
    (2, 3, 5, 5, 1),
    (3, 4, 6, 2, 2),
    (1, 17, 9, 3, 3),
    (4, 33, 40, 4, 4),
    (2, 5, 1, 2, 4),
    (2, 1, 5, 4, 3),
    (2, 8, 16, 8, 8),
    (300, 5, 7, 4, 4),
]


class Problem(NamedTuple):
    """Leaves that require a gradient, and the gradient of the result."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    upstream: Tensor


def problem(
    shape: tuple[int, int, int, int, int],
    *,
    dtype: torch.dtype = BF16,
    weight_dtype: torch.dtype = torch.float32,
    weight_format: torch.memory_format = torch.channels_last,
    seed: int = 0,
) -> Problem:
    batch, inputs, outputs, height, width = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    x = draw(batch, inputs, height, width).to(dtype, memory_format=torch.channels_last)
    weight = draw(outputs, inputs, 3, 3).to(weight_dtype, memory_format=weight_format)
    bias = draw(outputs).to(weight_dtype)
    upstream = draw(batch, outputs, height, width).to(dtype, memory_format=torch.channels_last)
    return Problem(x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), upstream)


def with_gradients(p: Problem, backend: str | None) -> list[Tensor]:
    """The result and the gradients of x, weight and bias."""
    y = conv3x3(p.x, p.weight, p.bias, backend=backend)
    return [y.detach(), *torch.autograd.grad(y, (p.x, p.weight, p.bias), p.upstream)]


def exact(p: Problem) -> tuple[list[Tensor], list[Tensor]]:
    """The same in float64, and for each the sums of the absolute values of the terms."""
    both = []
    for change in (lambda tensor: tensor, torch.abs):
        x, weight, bias, upstream = (change(tensor.detach().to(BF16).double()) for tensor in p)
        leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
        y = F.conv2d(*leaves, padding=1)
        both.append([y.detach(), *torch.autograd.grad(y, leaves, upstream)])
    return both[0], both[1]


def assert_rounded_once(p: Problem, results: list[Tensor]) -> None:
    """Of each result: sums in float32, every step rounded by 2^-24 at most, and one rounding to bfloat16, 2^-8."""
    batch, inputs, height, width = p.x.shape
    terms = [9 * inputs + 1, 9 * len(p.bias), *[batch * height * width] * 2]
    for actual, expected, absolute, count in zip(results, *exact(p), terms, strict=True):
        assert actual.shape == expected.shape
        sums = count * 2**-24 * absolute
        assert ((actual.double() - expected).abs() <= 2**-8 * (expected.abs() + sums) + sums).all()


@contextmanager
def called() -> Iterator[list[str]]:
    """The names of our operators that ran meanwhile, once it has ended."""
    names: list[str] = []
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        yield names
    events = (event.name for event in recorded.events())
    names += [name.removeprefix("tfkd_fast::") for name in events if name.startswith("tfkd_fast::")]


@pytest.mark.parametrize("weight_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("weight_dtype", [torch.float32, BF16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_result_and_gradients(backend: str, shape: Any, weight_dtype: torch.dtype, weight_format: Any) -> None:
    p = problem(shape, weight_dtype=weight_dtype, weight_format=weight_format)
    results = with_gradients(p, backend)
    assert_rounded_once(p, results)
    y, of_x, of_weight, of_bias = results
    assert [y.dtype, of_x.dtype] == [BF16, BF16]
    assert [of_weight.dtype, of_bias.dtype] == [weight_dtype, weight_dtype]
    assert y.is_contiguous(memory_format=torch.channels_last)
    if backend == "cpp":
        assert of_weight.stride() == p.weight.stride()


@needs_cpp
@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1000),
)
def test_any_shape(shape: Any, seed: int) -> None:
    p = problem(shape, seed=seed)
    assert_rounded_once(p, with_gradients(p, "cpp"))


@needs_cpp
def test_errors_are_no_larger_than_those_of_torch() -> None:
    p = problem((32, 96, 64, 4, 4))
    expected, _ = exact(p)
    errors = [
        [
            float((a.double() - e).square().mean().sqrt())
            for a, e in zip(with_gradients(p, backend), expected, strict=True)
        ]
        for backend in ("cpp", "reference")
    ]
    # Both round the same sums once: 2,048 or more errors of one size, whose mean square is known to 2 % or better.
    assert all(ours <= 1.05 * theirs for ours, theirs in zip(*errors, strict=True))


@needs_cpp
def test_float32_parameters_get_gradients_that_sum_the_bias_in_float32() -> None:
    p = problem((64, 4, 8, 4, 4))
    *_, of_bias = with_gradients(p, "cpp")
    torch.testing.assert_close(of_bias, p.upstream.float().sum((0, 2, 3)), rtol=0, atol=1024 * 2**-24 * 64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: str) -> None:
    p = problem((0, 4, 6, 4, 4))
    y, of_x, of_weight, of_bias = with_gradients(p, backend)
    assert y.shape == (0, 6, 4, 4)
    assert of_x.shape == (0, 4, 4, 4)
    assert not of_weight.any()
    assert not of_bias.any()


@needs_cpp
def test_strides_do_not_matter() -> None:
    p = problem((3, 8, 6, 4, 4))
    spread = torch.stack([p.weight.detach()] * 2, -1)[..., 0].requires_grad_()  # no two neighbours, and not dense
    strided = Problem(p.x.detach().contiguous().requires_grad_(), spread, p.bias, p.upstream.contiguous())
    for actual, expected in zip(with_gradients(strided, "cpp"), with_gradients(p, "cpp"), strict=True):
        assert torch.equal(actual, expected)


@needs_cpp
def test_the_same_twice() -> None:
    p = problem((16, 64, 48, 4, 4))
    first, second = with_gradients(p, "cpp"), with_gradients(p, "cpp")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_cpp
def test_without_bias_it_adds_none() -> None:
    p = problem((2, 4, 6, 4, 4))
    y = conv3x3(p.x, p.weight, backend="cpp")
    assert torch.equal(y, conv3x3(p.x, p.weight, torch.zeros(6), backend="cpp"))
    assert torch.autograd.grad(y, p.x, p.upstream)[0].shape == p.x.shape


@needs_cpp
@pytest.mark.parametrize(
    ("needed", "gradients"),
    [
        ("x", ["conv3x3_input_gradient"]),
        ("weight", ["conv3x3_weight_gradient"]),
        ("bias", ["bias_gradient"]),
    ],
)
def test_only_gradients_that_are_needed_are_computed(needed: str, gradients: list[str]) -> None:
    p = problem((2, 4, 6, 4, 4))
    leaves = {name: getattr(p, name).detach().requires_grad_(name == needed) for name in ("x", "weight", "bias")}
    with called() as names:
        conv3x3(**leaves, backend="cpp").backward(p.upstream)
    assert names == ["conv3x3", *gradients]
    expected = dict(zip(("x", "weight", "bias"), with_gradients(p, "cpp")[1:], strict=True))
    assert torch.equal(leaves[needed].grad, expected[needed])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_the_outputs_beside_it_and_no_others(backend: str) -> None:
    """Products with the padding would be NaN, too."""
    p = problem((2, 3, 5, 4, 4))
    x = p.x.detach().clone()
    x[1, 2, 0, 3] = float("nan")
    y = conv3x3(x, p.weight, p.bias, backend=backend)
    reached = torch.zeros(2, 4, 4, dtype=torch.bool)
    reached[1, :2, 2:] = True
    assert torch.equal(y.isnan(), reached.unsqueeze(1).expand(2, 5, 4, 4))


@needs_cpp
def test_registration() -> None:
    p = problem((2, 3, 5, 4, 4))
    x, weight = p.x.detach(), p.weight.detach()
    library = torch.ops.tfkd_fast
    torch.library.opcheck(library.conv3x3.default, (x, weight, p.bias.detach()))
    torch.library.opcheck(library.conv3x3.default, (x.contiguous(), weight.contiguous(), None))
    torch.library.opcheck(library.conv3x3_input_gradient.default, (p.upstream, weight))
    torch.library.opcheck(library.conv3x3_weight_gradient.default, (p.upstream, x, weight.to(BF16)))


@needs_cpp
def test_compiles_as_one_graph() -> None:
    p = problem(CALL)

    def result(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=BF16):
            return conv3x3(x, p.weight, p.bias).float()

    torch.compiler.reset()
    results = []
    for function in (result, torch.compile(result, fullgraph=True)):
        x = p.x.detach().requires_grad_()
        with called() as names, conv_algorithms.using(BY_TAPS):
            y = function(x)
            gradients = torch.autograd.grad(y, (x, p.weight, p.bias), p.upstream.float())
        results.append((y.detach(), *gradients))
        assert {"conv3x3", "conv3x3_input_gradient", "conv3x3_weight_gradient"} <= set(names)
    torch.testing.assert_close(results[1], results[0])


@needs_cpp
def test_a_second_derivative_is_refused() -> None:
    p = problem((2, 3, 5, 4, 4))
    y = conv3x3(p.x, p.weight, p.bias, backend="cpp")
    (of_x,) = torch.autograd.grad(y, p.x, p.upstream.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        of_x.sum().backward()


# Which calls are served by what.

CALL = (16, 64, 48, 4, 4)
BY_TAPS = {Convolution(64, 4, 4, 48, torch.float32): Algorithms("taps", "taps", "taps")}


@needs_cpp
@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        (CALL, BF16, ["conv3x3"]),
        ((3, *CALL[1:]), BF16, ["conv3x3"]),  # a smaller batch
        (CALL, torch.float32, []),
        ((16, 64, 48, 4, 5), BF16, []),
        ((16, 64, 40, 4, 4), BF16, []),
    ],
)
@pytest.mark.parametrize("forced", ["auto", "cpp", "cuda"])
def test_calls_take_the_algorithm_that_was_chosen_for_their_shape(
    shape: Any, dtype: torch.dtype, expected: list[str], forced: str
) -> None:
    p = problem(shape, dtype=dtype)
    with called() as names, ops.using_backend(forced), conv_algorithms.using(BY_TAPS):
        conv3x3(p.x, p.weight, p.bias)
    assert names == expected
    with called() as names, ops.using_backend(forced):
        conv3x3(p.x, p.weight, p.bias)
    assert names == []


@needs_cpp
def test_forcing_the_reference() -> None:
    p = problem(CALL)
    with called() as names, ops.using_backend("reference"), conv_algorithms.using(BY_TAPS):
        y = conv3x3(p.x, p.weight, p.bias)
    assert names == []
    assert torch.equal(y, F.conv2d(p.x, p.weight.to(BF16), p.bias.to(BF16), padding=1))


def test_an_autocast_region_sets_the_dtype() -> None:
    p = problem(CALL, dtype=torch.float32)
    with torch.autocast("cpu", dtype=BF16):
        y = conv3x3(p.x, p.weight, p.bias)
        reference = conv3x3(p.x, p.weight, p.bias, backend="reference")
        assert torch.equal(reference, F.conv2d(p.x, p.weight, p.bias, padding=1))
    assert y.dtype == BF16
    assert torch.autograd.grad(y, p.x, p.upstream.to(BF16))[0].dtype == torch.float32
    rounded = p._replace(x=p.x.detach().to(BF16).requires_grad_())
    assert torch.equal(y, conv3x3(rounded.x, p.weight, p.bias))


@pytest.mark.parametrize("compiled", [False, True])
def test_torch_func_is_left_to_the_reference(compiled: bool) -> None:
    """Also where the weights alone are mapped."""
    p = problem(CALL)
    weights = torch.stack([p.weight.detach(), -p.weight.detach()])

    def loss(weight: Tensor) -> Tensor:
        return (conv3x3(p.x.detach(), weight, p.bias.detach()) * p.upstream).float().sum()

    mapped = torch.func.vmap(torch.func.grad(loss))
    if compiled:
        torch.compiler.reset()
        mapped = torch.compile(mapped, fullgraph=True, backend="aot_eager")
    with called() as names, conv_algorithms.using(BY_TAPS):
        gradients = mapped(weights)
    assert names == []
    _, _, expected, _ = with_gradients(p, "reference")
    # Two gradients of the same sums, 256 terms, in two orders, and rounded to bfloat16.
    torch.testing.assert_close(gradients, torch.stack([expected] * 2), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_other_dtypes_are_those_of_torch(dtype: torch.dtype) -> None:
    p = problem((2, 3, 5, 4, 4), dtype=dtype)
    expected = F.conv2d(p.x, p.weight.to(dtype), p.bias.to(dtype), padding=1)
    assert torch.equal(conv3x3(p.x, p.weight, p.bias), expected)


X, W, B = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3), torch.zeros(5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, torch.zeros(5, 3, 1, 1)), ValueError, r"weight must be \(K,C,3,3\), got \(5, 3, 1, 1\)"),
        ((X[:, :2], W), ValueError, r"x must be \(B,3,H,W\) for this weight, got \(2, 2, 4, 4\)"),
        ((X[0], W), ValueError, r"x must be \(B,3,H,W\)"),
        ((X, W, B[:4]), ValueError, r"bias must be \(5,\) for this weight, got \(4,\)"),
        (
            (X, W.double()),
            TypeError,
            r"weight must be torch.float32 or of the dtype of x, torch.float32, got torch.float64",
        ),
        ((X, W, B.double()), TypeError, r"bias must be torch.float32 as the weight is, got torch.float64"),
    ],
)
def test_arguments_that_do_not_fit(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        conv3x3(*arguments)


@needs_cpp
def test_cpp_says_what_it_does_not_serve() -> None:
    with pytest.raises(ValueError, match=r"it serves bfloat16 tensors, not torch\.float32 tensors"):
        conv3x3(X, W, backend="cpp")
