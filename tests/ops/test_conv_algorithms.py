"""Each algorithm of a convolution for each of its passes, alone and mixed; which calls take them."""

import re
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from tests.support.threads import using_threads
from tfkd_fast.ops import conv3x3, conv_algorithms, convolution
from tfkd_fast.ops.conv_algorithms import PASSES, TORCH, Algorithms, Convolution, convolve, convolve_as_chosen

BF16 = torch.bfloat16
BATCH, INPUTS, OUTPUTS, SIZE = 6, 32, 48, 8
SHAPE = Convolution(INPUTS, SIZE, SIZE, OUTPUTS, torch.float32)
OTHERS = conv_algorithms.serving("forward", SHAPE, BATCH)[1:]
needs_others = pytest.mark.skipif(not OTHERS, reason="torch's is the only algorithm here")


def numbers() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and the gradient of the result in float32."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, upstream = (
        torch.randn(shape, generator=generator)
        for shape in ((BATCH, INPUTS, SIZE, SIZE), (OUTPUTS, INPUTS, 3, 3), (OUTPUTS,), (BATCH, OUTPUTS, SIZE, SIZE))
    )
    return x, weight, bias, upstream


def leaves(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight and bias, which require a gradient, and the gradient of the result; parameters are of the dtype."""
    x, weight, bias, upstream = numbers()
    x = x.to(BF16, memory_format=torch.channels_last)
    weight = weight.to(dtype, memory_format=torch.channels_last)
    upstream = upstream.to(BF16, memory_format=torch.channels_last)
    return x.requires_grad_(), weight.requires_grad_(), bias.to(dtype).requires_grad_(), upstream


def results_by(algorithms: Algorithms, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The result, and the gradients of x, weight and bias."""
    x, weight, bias, upstream = leaves(dtype=dtype)
    with conv_algorithms.using({SHAPE._replace(weight_dtype=dtype): algorithms}):
        y = conv3x3(x, weight, bias)
    return [y.detach(), *torch.autograd.grad(y, (x, weight, bias), upstream)]


def exact_results() -> list[Tensor]:
    """The same in float64, of numbers that are not rounded."""
    x, weight, bias, upstream = (tensor.double().requires_grad_() for tensor in numbers())
    y = F.conv2d(x, weight, bias, padding=1)
    return [y.detach(), *torch.autograd.grad(y, (x, weight, bias), upstream)]


@needs_others
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("algorithms", list(product(["torch", *OTHERS], repeat=3)), ids="-".join)
def test_every_mixture_is_right(algorithms: tuple[str, str, str], dtype: torch.dtype) -> None:
    """Each result within twice the error that it has by torch, for numbers that are rounded to bfloat16."""
    exact = exact_results()
    ours, theirs = (results_by(by, dtype) for by in (Algorithms(*algorithms), TORCH))
    for own, by_torch, expected, name in zip(ours, theirs, exact, ("y", "x", "weight", "bias"), strict=True):
        assert (own.dtype, own.shape) == (by_torch.dtype, by_torch.shape), name
        assert (own - expected).norm() <= 2 * (by_torch - expected).norm(), name


@needs_others
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 2), (5, 1), (5, 2)])
def test_other_kernels_and_strides(kernel: int, stride: int, size: int) -> None:
    """Each algorithm in the passes that it has; the others are torch's. Errors as above."""
    shape = Convolution(INPUTS, size, size, OUTPUTS, torch.float32, kernel, stride)
    generator = torch.Generator().manual_seed(0)
    x, weight, upstream = (torch.randn(sizes, generator=generator) for sizes in shape.shapes(BATCH))
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    in_float64 = F.conv2d(x.double(), weight.double(), stride=stride, padding=kernel // 2)
    exact = [in_float64, *torch.autograd.grad(in_float64, leaves, upstream.double())]

    def results(own: str) -> list[Tensor]:
        served = [own if own in conv_algorithms.serving(name, shape, BATCH) else "torch" for name in PASSES]
        with conv_algorithms.using({shape: Algorithms(*served)}):
            y = conv_algorithms.convolve_as_chosen(x.to(BF16), weight, None, stride)
        return [y, *torch.autograd.grad(y, leaves, upstream.to(BF16))]

    for own in OTHERS:
        for ours, theirs, expected in zip(results(own), results("torch"), exact, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), own
            assert (ours - expected).norm() <= 2 * (theirs - expected).norm(), own


@pytest.mark.parametrize("own", [False, True])
def test_strided_1x1_weights_over_few_channels_of_wide_maps(own: bool) -> None:
    """torch's gradient of these weights in bfloat16 ends the process. The numbers are small integers, whose sums are
    exact but for the rounding of the result to bfloat16."""
    generator = torch.Generator().manual_seed(0)
    shapes = Convolution(8, 96, 96, 16, torch.float32, kernel=1, stride=2).shapes(2)
    x, weight, upstream = (torch.randint(-2, 3, sizes, generator=generator).float() for sizes in shapes)
    leaves = x.requires_grad_(), weight.requires_grad_()
    exact = F.conv2d(x, weight, stride=2)
    lower = x.to(BF16, memory_format=torch.channels_last)
    y = convolve(lower, weight, None, TORCH, 2) if own else convolve_as_chosen(lower, weight, None, 2)
    found = [y.float(), *torch.autograd.grad(y, leaves, upstream.to(BF16))]
    for ours, expected in zip(found, [exact, *torch.autograd.grad(exact, leaves, upstream)], strict=True):
        torch.testing.assert_close(ours, expected, rtol=2**-8, atol=0)


@needs_others
@pytest.mark.parametrize("needed", ["x", "weight", "bias", "nothing"])
@pytest.mark.parametrize("algorithms", [("torch", "torch", OTHERS[0]), (OTHERS[0], "torch", "torch")] if OTHERS else [])
def test_gradients_that_are_not_needed(needed: str, algorithms: tuple[str, str, str]) -> None:
    by = Algorithms(*algorithms)
    expected = dict(zip(("y", "x", "weight", "bias"), results_by(by), strict=True))
    *parts, upstream = leaves()
    arguments = {name: part.detach() for name, part in zip(("x", "weight", "bias"), parts, strict=True)}
    if needed != "nothing":
        arguments[needed].requires_grad_()
    with conv_algorithms.using({SHAPE: by}):
        y = conv3x3(**arguments)
    assert torch.equal(y, expected["y"])
    assert y.requires_grad == (needed != "nothing")
    if y.requires_grad:
        assert torch.equal(torch.autograd.grad(y, arguments[needed], upstream)[0], expected[needed])


@needs_others
def test_without_gradient_and_without_bias() -> None:
    by = Algorithms(OTHERS[0], "torch", "torch")
    x, weight, _, _ = leaves()
    with conv_algorithms.using({SHAPE: by}):
        with torch.no_grad():
            y = conv3x3(x, weight)
        assert not y.requires_grad
        assert torch.equal(y, conv3x3(x, weight))
        assert torch.equal(y, conv3x3(x, weight, torch.zeros(OUTPUTS)))


@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (3, 5, 7, 9), (2, 40, 33, 31), (1, 1, 1, 1), (0, 3, 2, 2)])
def test_the_gradient_of_the_bias(shape: tuple[int, ...]) -> None:
    """Against float64: an error of the blocks' sums, 256 / 4 additions and two more, and the rounding of the result."""
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(BF16)
    exact, bound = gradient.double().sum((0, 2, 3)), 67 * 2**-24 * gradient.double().abs().sum((0, 2, 3))
    maps = gradient.to(memory_format=torch.channels_last)
    sums = convolution.bias_gradient(maps)
    assert sums.dtype == torch.float32
    assert bool(((sums - exact).abs() <= bound).all())
    with using_threads(2):
        assert torch.equal(convolution.bias_gradient(maps), sums)
        assert torch.equal(convolution.bias_gradient(gradient), sums)  # of any strides


@needs_others
def test_a_second_derivative_is_refused() -> None:
    x, weight, bias, upstream = leaves()
    with conv_algorithms.using({SHAPE: Algorithms("torch", "torch", OTHERS[0])}):
        y = conv3x3(x, weight, bias)
    (of_x,) = torch.autograd.grad(y, x, upstream.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        of_x.sum().backward()


@needs_others
def test_forward_mode_is_left_to_torch() -> None:
    x, weight, bias, _ = (tensor.detach() for tensor in leaves())
    with forward_ad.dual_level(), conv_algorithms.using({SHAPE: Algorithms(OTHERS[0], "torch", "torch")}):
        y = conv3x3(forward_ad.make_dual(x, torch.ones_like(x)), weight, bias)
        tangent = forward_ad.unpack_dual(y).tangent
    assert torch.equal(tangent, F.conv2d(torch.ones_like(x), weight.to(BF16), padding=1))


@needs_others
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_gradient_with_a_tangent_is_refused_by_the_kernel(kernel: int) -> None:
    x, weight, _, upstream = leaves()
    weight = weight.detach()[..., :kernel, :kernel].requires_grad_()
    last = conv_algorithms.serving("weight_gradient", SHAPE._replace(kernel=kernel), BATCH)[-1]
    with conv_algorithms.using({SHAPE._replace(kernel=kernel): Algorithms(weight_gradient=last)}):
        y = conv_algorithms.convolve_as_chosen(x, weight)
    refusal = f'a {kernel}x{kernel} convolution has no forward-mode derivative: use ops.using_backend("reference")'
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=re.escape(refusal)):
        torch.autograd.grad(y, weight, forward_ad.make_dual(upstream, upstream))


@needs_others
def test_a_mixture_compiles_as_one_graph() -> None:
    by = Algorithms("torch", OTHERS[0], OTHERS[0])
    x, weight, bias, upstream = leaves()
    torch.compiler.reset()
    compiled = torch.compile(conv3x3, fullgraph=True, backend="aot_eager")
    with conv_algorithms.using({SHAPE: by}):
        y = compiled(x, weight, bias)
    gradients = torch.autograd.grad(y, (x, weight, bias), upstream)
    for actual, expected in zip((y.detach(), *gradients), results_by(by), strict=True):
        assert torch.equal(actual, expected)


# Choosing.


def test_calls_are_recorded_with_the_passes_that_they_take() -> None:
    x, weight, bias, _ = leaves()
    narrow = Convolution(INPUTS, SIZE, SIZE, OUTPUTS, BF16)
    with conv_algorithms.recording() as passes:
        conv3x3(x.detach(), weight, bias)
        with torch.no_grad():
            conv3x3(x, weight.to(BF16))
        conv3x3(x.float(), weight)  # torch's in any case
    assert passes == {SHAPE: {"forward", "weight_gradient"}, narrow: {"forward"}}
    with conv_algorithms.recording() as passes:
        conv3x3(x.detach(), weight)
        conv3x3(x, weight.detach())
    assert passes == {SHAPE: {"forward", "input_gradient", "weight_gradient"}}


def test_choices_end_with_their_context() -> None:
    x, weight, _, _ = leaves()
    outer, inner = Algorithms("torch", "torch", "other"), Algorithms("other", "torch", "torch")
    with conv_algorithms.using({SHAPE: outer}):
        with conv_algorithms.using({SHAPE: inner}):
            assert conv_algorithms.find_algorithms(x, weight) == inner
        with conv_algorithms.using({SHAPE: TORCH}):
            assert conv_algorithms.find_algorithms(x, weight) is None
        assert conv_algorithms.find_algorithms(x, weight) == outer
        assert conv_algorithms.find_algorithms(x.float(), weight) is None
        assert conv_algorithms.find_algorithms(x, weight[1:]) is None
    assert conv_algorithms.find_algorithms(x, weight) is None
