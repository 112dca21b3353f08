"""norm_relu_pool against torch's three functions: the same bits forward, float64 and finite differences backward."""

from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.cuda_on_host.build import NAMESPACE
from tests.ops.losses import assert_near, operator_of, to
from tests.support.threads import using_threads
from tfkd_fast import ops
from tfkd_fast.ops import fused, norm_relu_pool

MOMENTUM, EPS = 1 / 3, 1e-3  # 1 - 1/3 is another number when it is computed in float32
CPU = torch.device("cpu")
needs_cpp = pytest.mark.skipif(
    ops.backends.native_library.missing is not None, reason=str(ops.backends.native_library.missing)
)


@pytest.fixture(scope="module", params=["reference", "cpp"])
def backend(request: pytest.FixtureRequest) -> str:
    """Those for the processor."""
    if request.param != "reference" and (reason := ops.backends.native_library.missing) is not None:
        pytest.skip(reason)
    return request.param


class Problem(NamedTuple):
    """Arguments in their order, and a gradient to send back."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    upstream: Tensor
    pool: bool

    def leaves(self) -> "Problem":
        """Copies, of which the first three require a gradient."""
        tensors = [tensor.clone() for tensor in self[:6]]
        return Problem(*(tensor.requires_grad_(i < 3) for i, tensor in enumerate(tensors)), self.pool)

    def to(self, dtype: torch.dtype) -> "Problem":
        """Everything in one dtype."""
        return Problem(*(tensor.to(dtype) for tensor in self[:6]), self.pool)


def problem(shape: tuple[int, int, int, int], *, dtype: torch.dtype, pool: bool, seed: int = 0) -> Problem:
    """Channels-last images whose channels have means of their own."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, height, width = shape
    numbers = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    x = 2 * normal(*shape) + 3 * normal(1, channels, 1, 1)
    out = (batch, channels, height // 2, width // 2) if pool else shape
    tensors = (x.to(dtype), normal(channels), normal(channels), normal(channels), 1 + normal(channels) ** 2)
    x, *rest = tensors
    upstream = normal(*out).to(dtype).contiguous(memory_format=torch.channels_last)
    numbers_ = [tensor.to(numbers) for tensor in rest]
    return Problem(x.contiguous(memory_format=torch.channels_last), *numbers_, upstream, pool)


class Outcome(NamedTuple):
    """What a call leaves behind."""

    result: Tensor
    running_mean: Tensor
    running_var: Tensor
    of_x: Tensor
    of_weight: Tensor
    of_bias: Tensor


def outcome(given: Problem, backend: str) -> Outcome:
    own = given.leaves()
    y = norm_relu_pool(*own[:5], momentum=MOMENTUM, eps=EPS, pool=own.pool, backend=backend)
    gradients = torch.autograd.grad(y, own[:3], own.upstream)
    return Outcome(y.detach(), own.running_mean, own.running_var, *gradients)


def written_out(given: Problem) -> Outcome:
    """The same with the modules that it stands for."""
    own = given.leaves()
    norm = torch.nn.BatchNorm2d(own.x.shape[1], eps=EPS, momentum=MOMENTUM, dtype=own.weight.dtype)
    norm.load_state_dict(
        {
            "weight": own.weight,
            "bias": own.bias,
            "running_mean": own.running_mean,
            "running_var": own.running_var,
            "num_batches_tracked": torch.tensor(0),
        }
    )
    y = F.relu(norm(own.x))
    y = F.max_pool2d(y, 2) if own.pool else y
    gradients = torch.autograd.grad(y, (own.x, norm.weight, norm.bias), own.upstream)
    return Outcome(y.detach(), norm.running_mean, norm.running_var, *gradients)


def assert_same_forward(ours: Outcome, torchs: Outcome) -> None:
    for name in ("result", "running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(torchs, name), rtol=0, atol=0, equal_nan=True, msg=name)


SHAPES = [
    ((8, 64, 16, 16), True),
    ((8, 128, 8, 8), True),
    ((8, 512, 4, 4), False),
    ((3, 37, 7, 9), True),  # odd sizes, channels that fill no vector
    ((2, 33, 5, 6), False),
    ((3, 24, 4, 6), False),  # four positions fill three vectors in bfloat16
    ((2, 20, 5, 6), True),  # less than a vector
    ((3, 12, 7, 4), True),
    ((1, 8, 2, 2), True),
    ((1, 16, 4, 1), False),
    ((70, 3, 1, 1), False),
    ((2, 40, 3, 300), True),  # more windows in a row than one tile has
]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("shape", "pool"), SHAPES)
def test_forward_and_running_statistics_are_torchs_to_the_last_bit(
    backend: str, shape: tuple[int, int, int, int], pool: bool, dtype: torch.dtype, threads: int
) -> None:
    given = problem(shape, dtype=dtype, pool=pool)
    with using_threads(threads):
        assert_same_forward(outcome(given, backend), written_out(given))


def errors(actual: Outcome, exact: Outcome) -> list[float]:
    """Of the three gradients, the largest error relative to the largest number of its channel."""
    largest = []
    for name in ("of_x", "of_weight", "of_bias"):
        gradient, truth = getattr(actual, name).double(), getattr(exact, name).double()
        axes = (0, 2, 3) if gradient.dim() == 4 else ()
        error, size = (gradient - truth).abs(), truth.abs()
        if axes:
            error, size = error.amax(axes), size.amax(axes)
        else:
            size = size.amax()
        largest.append(float((error / size.clamp(min=1e-30)).max()))
    return largest


def exact_gradients(given: Problem) -> Outcome:
    """In float64, sent back to where the rounded numbers have their maxima: a tie is one of the dtype."""
    own = given.leaves()
    rounded = F.batch_norm(
        own.x, own.running_mean, own.running_var, own.weight, own.bias, training=True, momentum=MOMENTUM, eps=EPS
    )
    rounded = F.relu(rounded)
    exact = given.to(torch.float64).leaves()
    mean, var = exact.x.mean((0, 2, 3), keepdim=True), exact.x.var((0, 2, 3), keepdim=True, unbiased=False)
    weight, bias = (tensor.view(-1, 1, 1) for tensor in (exact.weight, exact.bias))
    y = (exact.x - mean) / (var + EPS).sqrt() * weight + bias
    y = torch.where(rounded > 0, y, 0.0)
    if given.pool:
        places = F.max_pool2d(rounded, 2, return_indices=True)[1]
        y = y.flatten(2).gather(2, places.flatten(2)).view_as(places)
    gradients = torch.autograd.grad(y, (exact.x, exact.weight, exact.bias), exact.upstream)
    return Outcome(y, own.running_mean, own.running_var, *gradients)


@pytest.mark.parametrize(("shape", "pool"), SHAPES[:8])
def test_gradients_in_float32_are_those_of_float64(backend: str, shape: tuple[int, int, int, int], pool: bool) -> None:
    given = problem(shape, dtype=torch.float32, pool=pool)
    terms = given.upstream.numel() // shape[1]
    # Of the roundings of a sum, 6e-8 each, sqrt(terms) add up; a sum may be some times smaller than its partial sums.
    tolerance = 6e-8 * (10 + 10 * terms**0.5)
    assert max(errors(outcome(given, backend), exact_gradients(given))) < tolerance


@pytest.mark.parametrize(("shape", "pool"), SHAPES[:8])
def test_gradients_in_bfloat16_are_no_worse_than_torchs(
    backend: str, shape: tuple[int, int, int, int], pool: bool
) -> None:
    given = problem(shape, dtype=torch.bfloat16, pool=pool)
    exact = exact_gradients(given)
    ours, torchs = errors(outcome(given, backend), exact), errors(written_out(given), exact)
    assert ours[0] < 2**-8 * 1.01  # rounded to bfloat16 once, by at most 2^-8 of its size
    # The gradients of the parameters are float32 sums, in another order than torch's: either may be a little luckier.
    assert all(mine <= 1.5 * max(torchs_, 1e-6) for mine, torchs_ in zip(ours, torchs, strict=True))


@settings(max_examples=60)
@given(
    batch=st.integers(1, 5),
    channels=st.integers(1, 70),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    pool=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
@example(batch=2, channels=32, height=3, width=9, pool=True, dtype=torch.bfloat16, seed=0)
def test_any_shape(
    backend: str, batch: int, channels: int, height: int, width: int, pool: bool, dtype: torch.dtype, seed: int
) -> None:
    if pool:
        height, width = max(height, 2), max(width, 2)
    assume(batch * height * width > 1)
    given = problem((batch, channels, height, width), dtype=dtype, pool=pool, seed=seed)
    with using_threads(1):  # of no more positions than threads torch's sums are in another order
        ours, torchs = outcome(given, backend), written_out(given)
    if channels > 1:  # one channel is contiguous, too, and torch takes it for that
        assert_same_forward(ours, torchs)
    for mine, other in zip(ours, torchs, strict=True):
        # The sums of at most 405 numbers are in another order; of x, the difference of numbers that may nearly cancel.
        tolerance = 2**-7 if mine.dtype == torch.bfloat16 else 1e-4
        size = float(other.double().abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(mine.double(), other.double(), rtol=0, atol=tolerance * max(size, 1e-3))


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 9, 2, 3)])
def test_gradcheck(backend: str, shape: tuple[int, int, int, int], pool: bool) -> None:
    own = problem(shape, dtype=torch.float64, pool=pool).leaves()

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        statistics = own.running_mean.clone(), own.running_var.clone()
        return norm_relu_pool(x, weight, bias, *statistics, momentum=MOMENTUM, eps=EPS, pool=pool, backend=backend)

    torch.autograd.gradcheck(function, own[:3])


def test_of_equal_maxima_the_first_gets_the_gradient(backend: str) -> None:
    """Few different numbers, which make ties, and numbers that only bfloat16 makes equal."""
    for dtype in (torch.bfloat16, torch.float32):
        given = problem((4, 40, 8, 8), dtype=dtype, pool=True)
        few = given._replace(x=given.x.clamp(-1, 1).round(), weight=given.weight.round())
        near = given._replace(x=(given.x.sign() * 1e-2 + 5).to(dtype), weight=1e-3 * given.weight, bias=given.bias + 3)
        for one in (few, near):
            ours, torchs = outcome(one, backend), written_out(one)
            assert_same_forward(ours, torchs)
            # A gradient at another position would differ by its whole size.
            size = float(torchs.of_x.abs().amax())
            torch.testing.assert_close(ours.of_x, torchs.of_x, rtol=0, atol=2**-6 * size)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "bias", "weight", "upstream"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pool", [True, False])
def test_numbers_that_are_not_finite(backend: str, pool: bool, dtype: torch.dtype, where: str, value: float) -> None:
    """They spoil their own channel alone, as in torch."""
    given = problem((3, 35, 6, 6), dtype=dtype, pool=pool)
    tensor = getattr(given, where)
    for channel in (1, 34):
        tensor.select(min(1, tensor.dim() - 1), channel).view(-1)[0] = value if tensor.dim() == 1 else 0.0
        if tensor.dim() == 4:
            tensor[1, channel, 1, 1] = value
    ours, torchs = outcome(given, backend), written_out(given)
    spoilt = torch.zeros(35, dtype=torch.bool)
    spoilt[[1, 34]] = True
    for name, mine, other in zip(Outcome._fields, ours, torchs, strict=True):
        axis = 1 if mine.dim() == 4 else 0
        rest = [tensor.index_select(axis, (~spoilt).nonzero()[:, 0]).double() for tensor in (mine, other)]
        assert rest[0].isfinite().all(), name
        torch.testing.assert_close(*rest, rtol=2**-7 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)
        if where == "weight" and value in (float("inf"), -float("inf")):
            continue  # all of such a channel is NaN here, and some in torch
        bad = [tensor.index_select(axis, spoilt.nonzero()[:, 0]) for tensor in (mine, other)]
        assert torch.equal(bad[0].isfinite(), bad[1].isfinite()), name


def test_a_constant_channel(backend: str) -> None:
    """Variance 0: eps alone keeps it finite."""
    for dtype in (torch.float32, torch.bfloat16):
        given = problem((4, 24, 4, 4), dtype=dtype, pool=True)
        given.x[:, ::2] = 1.5
        ours, torchs = outcome(given, backend), written_out(given)
        assert_same_forward(ours, torchs)
        assert all(tensor.isfinite().all() for tensor in ours)
        tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(ours.of_x, torchs.of_x, rtol=tolerance, atol=tolerance)


def test_empty_batch(backend: str) -> None:
    """As torch: an empty result, no gradient, and the running statistics stay."""
    given = problem((0, 5, 4, 4), dtype=torch.float32, pool=True)
    own = given.leaves()
    y = norm_relu_pool(*own[:5], momentum=MOMENTUM, backend=backend)
    assert y.shape == (0, 5, 2, 2)
    y.sum().backward()
    assert own.weight.grad is not None
    assert own.weight.grad.tolist() == [0.0] * 5
    assert torch.equal(own.running_mean, given.running_mean)
    assert torch.equal(own.running_var, given.running_var)


def test_any_layout_of_every_tensor(backend: str) -> None:
    given = problem((4, 12, 6, 6), dtype=torch.float32, pool=True)

    def strided(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, torch.zeros_like(tensor)], -1)[..., 0]

    layouts = [given.x.contiguous(), given.x.transpose(2, 3).contiguous().transpose(2, 3), strided(given.x)]
    expected = outcome(given, backend)
    for x in layouts:
        weight, bias, running_mean, running_var = (strided(tensor.clone()) for tensor in given[1:5])
        leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
        y = norm_relu_pool(*leaves, running_mean, running_var, momentum=MOMENTUM, eps=EPS, backend=backend)
        gradients = torch.autograd.grad(y, leaves, strided(given.upstream))
        actual = Outcome(y.detach(), running_mean, running_var, *gradients)
        for mine, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_an_expanded_gradient(backend: str) -> None:
    """As of a mean over the image."""
    given = problem((4, 20, 4, 4), dtype=torch.bfloat16, pool=False)
    expanded = given.upstream[:, :, :1, :1].expand(4, 20, 4, 4)
    ours = outcome(given._replace(upstream=expanded), backend)
    dense = outcome(given._replace(upstream=expanded.contiguous()), backend)
    torch.testing.assert_close(ours, dense)


def test_only_some_want_a_gradient(backend: str) -> None:
    given = problem((4, 20, 4, 4), dtype=torch.float32, pool=True)
    expected = outcome(given, backend)
    for names in (["x"], ["weight"], ["bias"], ["weight", "bias"]):
        own = Problem(*(tensor.clone() for tensor in given[:6]), given.pool)
        leaves = [getattr(own, name).requires_grad_() for name in names]
        y = norm_relu_pool(*own[:5], momentum=MOMENTUM, eps=EPS, backend=backend)
        gradients = torch.autograd.grad(y, leaves, own.upstream)
        for name, gradient in zip(names, gradients, strict=True):
            torch.testing.assert_close(gradient, getattr(expected, f"of_{name}"))
    with torch.no_grad():
        own = given.leaves()
        assert not norm_relu_pool(*own[:5], momentum=MOMENTUM, backend=backend).requires_grad


@needs_cpp
def test_a_second_derivative_is_refused_not_wrong() -> None:
    own = problem((4, 20, 4, 4), dtype=torch.float32, pool=True).leaves()
    y = norm_relu_pool(*own[:5], momentum=MOMENTUM, backend="cpp")
    (gradient,) = torch.autograd.grad(y.sum(), own.x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_autocast_changes_nothing(backend: str) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        given = problem((4, 20, 4, 4), dtype=dtype, pool=True)
        outside = outcome(given, backend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = outcome(given, backend)
        assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_a_call_is_a_function_of_its_arguments(backend: str) -> None:
    given = problem((16, 64, 16, 16), dtype=torch.bfloat16, pool=True)
    first = outcome(given, backend)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(outcome(given, backend), first, strict=True))


def test_compiles_as_one_graph(backend: str) -> None:
    given = problem((4, 20, 6, 6), dtype=torch.bfloat16, pool=True)

    def step(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        numbers = weight, bias, running_mean, running_var
        return norm_relu_pool(x, *numbers, momentum=MOMENTUM, eps=EPS, backend=backend) * 2.0

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")  # test_soft_target.py has Inductor
    results = []
    for function in (step, compiled):
        own = given.leaves()
        y = function(*own[:5])
        results.append([y, own.running_mean, own.running_var, *torch.autograd.grad(y, own[:3], own.upstream)])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize(
    ("shape", "pool"), [((3, 37, 7, 9), True), ((3, 37, 3, 3), False), ((3, 24, 4, 4), False), ((0, 5, 4, 4), True)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_registration(backend: str, dtype: torch.dtype, shape: tuple[int, int, int, int], pool: bool) -> None:
    chosen = SimpleNamespace(name=backend, device=CPU)
    forward = operator_of(chosen, "norm_relu_pool")
    given = problem(shape, dtype=dtype, pool=pool)
    torch.library.opcheck(forward, (*given[:5], MOMENTUM, EPS, pool))
    _, *saved = forward(*given[:5], MOMENTUM, EPS, pool)
    backward = operator_of(chosen, "norm_relu_pool_backward")
    torch.library.opcheck(backward, (given.upstream, given.x, given.weight, *saved, pool))


# With a residual.

SHAPES_WITH_RESIDUAL = [(4, 64, 4, 4), (3, 37, 3, 5), (3, 24, 4, 6), (2, 20, 3, 3), (3, 12, 3, 5), (2, 3, 2, 3)]


def residual_of(given: Problem) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(given.x.shape, generator=generator, dtype=torch.float64)
    return (2 * normal).to(given.x.dtype).contiguous(memory_format=torch.channels_last)


def outcome_with_residual(given: Problem, residual: Tensor, backend: str) -> list[Tensor]:
    """The result, the running statistics, and the gradients of x, weight, bias and the residual."""
    own, leaf = given.leaves(), residual.clone().requires_grad_()
    y = norm_relu_pool(*own[:5], momentum=MOMENTUM, eps=EPS, pool=False, residual=leaf, backend=backend)
    gradients = torch.autograd.grad(y, (*own[:3], leaf), own.upstream)
    return [y.detach(), own.running_mean, own.running_var, *gradients]


def written_out_with_residual(given: Problem, residual: Tensor) -> list[Tensor]:
    own, leaf = given.leaves(), residual.clone().requires_grad_()
    numbers = own.running_mean, own.running_var, own.weight, own.bias
    y = F.relu(F.batch_norm(own.x, *numbers, training=True, momentum=MOMENTUM, eps=EPS) + leaf)
    gradients = torch.autograd.grad(y, (*own[:3], leaf), own.upstream)
    return [y.detach(), own.running_mean, own.running_var, *gradients]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES_WITH_RESIDUAL)
def test_residual_is_torchs_to_the_last_bit(
    backend: str, shape: tuple[int, int, int, int], dtype: torch.dtype, threads: int
) -> None:
    """Result, running statistics, and the residual's gradient, which is computed with no other numbers."""
    given = problem(shape, dtype=dtype, pool=False)
    residual = residual_of(given)
    with using_threads(threads):
        ours, torchs = outcome_with_residual(given, residual, backend), written_out_with_residual(given, residual)
    for i in (0, 1, 2, 6):
        assert torch.equal(ours[i], torchs[i]), i
    assert ours[6].stride() == given.x.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES_WITH_RESIDUAL)
def test_gradients_beside_a_residual(backend: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Against batch norm in float64, sent back through the ReLU of the rounded numbers."""
    given = problem(shape, dtype=dtype, pool=False)
    residual = residual_of(given)
    result, _, _, *gradients, _ = outcome_with_residual(given, residual, backend)
    exact = given.to(torch.float64).leaves()
    numbers = exact.running_mean, exact.running_var, exact.weight, exact.bias
    y = F.batch_norm(exact.x, *numbers, training=True, eps=EPS)
    truth = torch.autograd.grad(y, exact[:3], torch.where(result > 0, exact.upstream, 0.0))
    terms = given.upstream.numel() // shape[1]
    tolerance = 6e-8 * (10 + 10 * terms**0.5)  # as without a residual
    for i, (mine, other) in enumerate(zip(gradients, truth, strict=True)):
        rounding = 2**-8 * 1.01 if i == 0 and dtype == torch.bfloat16 else 0.0
        assert (mine - other).abs().max() < (tolerance + rounding) * other.abs().max()


def test_gradcheck_with_residual(backend: str) -> None:
    given = problem((2, 9, 2, 3), dtype=torch.float64, pool=False)
    own, leaf = given.leaves(), residual_of(given).requires_grad_()

    def function(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        numbers = weight, bias, own.running_mean.clone(), own.running_var.clone()
        return norm_relu_pool(x, *numbers, momentum=MOMENTUM, pool=False, residual=residual, backend=backend)

    torch.autograd.gradcheck(function, (*own[:3], leaf))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_residual_that_is_not_finite(backend: str, dtype: torch.dtype) -> None:
    """It spoils its own position alone, as in torch, whatever bits its NaN has."""
    given = problem((3, 35, 4, 4), dtype=dtype, pool=False)
    residual = residual_of(given)
    for i, value in enumerate((float("nan"), -float("nan"), float("inf"), -float("inf"))):
        residual[1, 3 + 10 * i, 2, 1] = value
    residual[0, 7] = -residual[1, 3].abs()  # the sign of a NaN is not lost by abs and a minus
    ours, torchs = outcome_with_residual(given, residual, backend), written_out_with_residual(given, residual)
    torch.testing.assert_close(ours[0], torchs[0], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(ours[6], torchs[6], rtol=0, atol=0, equal_nan=True)
    assert ours[0].isnan().sum() == torchs[0].isnan().sum() > 2


def test_a_residual_of_any_layout_that_alone_wants_a_gradient(backend: str) -> None:
    given = problem((4, 12, 6, 6), dtype=torch.float32, pool=False)
    residual = residual_of(given)
    expected = outcome_with_residual(given, residual, backend)
    leaf = residual.contiguous().requires_grad_()
    numbers = given.weight, given.bias, given.running_mean.clone(), given.running_var.clone()
    y = norm_relu_pool(given.x, *numbers, momentum=MOMENTUM, eps=EPS, pool=False, residual=leaf, backend=backend)
    torch.testing.assert_close(y, expected[0])
    torch.testing.assert_close(torch.autograd.grad(y, leaf, given.upstream)[0], expected[6])


@pytest.mark.parametrize("shape", [(3, 37, 3, 3), (3, 24, 4, 4)])
def test_registration_with_residual(backend: str, shape: tuple[int, int, int, int]) -> None:
    chosen = SimpleNamespace(name=backend, device=CPU)
    forward = operator_of(chosen, "norm_relu_pool")
    given = problem(shape, dtype=torch.bfloat16, pool=False)
    arguments = (*given[:5], MOMENTUM, EPS, False, residual_of(given))
    torch.library.opcheck(forward, arguments)
    _, *saved = forward(*arguments)
    backward = operator_of(chosen, "norm_relu_pool_backward")
    torch.library.opcheck(backward, (given.upstream, given.x, given.weight, *saved, False, True))


def test_torch_func_takes_the_reference() -> None:
    """vmap over parameters, statistics and images, and over a gradient."""
    problems = [problem((4, 6, 4, 4), dtype=torch.float32, pool=True, seed=seed) for seed in range(3)]
    stacked = [torch.stack(tensors) for tensors in zip(*(one[:5] for one in problems), strict=True)]

    def loss(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        numbers = weight, bias, running_mean, running_var
        return (norm_relu_pool(x, *numbers, momentum=MOMENTUM, eps=EPS) ** 2).sum()

    copies = [tensor.clone() for tensor in stacked]
    of_weight = torch.func.vmap(torch.func.grad(loss, argnums=1))(*copies)
    for i, one in enumerate(problems):
        own = one.leaves()
        (expected,) = torch.autograd.grad(loss(*own[:5]), own.weight)
        torch.testing.assert_close(of_weight[i], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(copies[3][i], own.running_mean)
        torch.testing.assert_close(copies[4][i], own.running_var)


# The kernels for a GPU.


class Passes(NamedTuple):
    """What both passes of a kernel leave behind, on the processor."""

    result: Tensor
    running_mean: Tensor
    running_var: Tensor
    mean: Tensor
    invstd: Tensor
    places: Tensor
    """(B,C,H,W) of the windows: the position of the maximum, 0 to 3, and -1 where the ReLU lets nothing through."""
    of_x: Tensor
    of_weight: Tensor
    of_bias: Tensor
    of_residual: Tensor


def passes(given: Problem, kernel: Any, residual: Tensor | None = None) -> Passes:
    namespace = NAMESPACE if kernel.name == "cuda" and kernel.device.type == "cpu" else fused.NAMESPACES[kernel.name]
    forward, backward = (fused.overload(namespace, f"norm_relu_pool{end}") for end in ("", "_backward"))
    x, *numbers, upstream = to(tuple(given[:6]), kernel.device)
    numbers = [tensor.clone() for tensor in numbers]
    added = None if residual is None else residual.to(kernel.device)
    result, stored, mean, invstd = forward(x, *numbers, MOMENTUM, EPS, given.pool, added)
    gradients = backward(upstream, x, numbers[0], stored, mean, invstd, given.pool, residual is not None)
    tensors = to((result, *numbers[2:], mean, invstd, stored, *gradients), torch.device("cpu"))
    return Passes(*tensors)._replace(places=decoded(tensors[5], given))


def decoded(stored: Tensor, given: Problem) -> Tensor:
    """Places as the kernels store them: vectors of 16 bytes, where those divide a position, with 4 bits a channel, or
    1 bit for a window of one position; at least a byte each."""
    channels, full = given.x.shape[1], 16 // given.x.itemsize
    vector, bits = full if channels % full == 0 else 1, 4 if given.pool else 1
    words = stored.long().unflatten(3, (channels // vector, -1))
    words = (words << (8 * torch.arange(words.shape[-1]))).sum(-1)
    codes = (words.unsqueeze(-1) >> (bits * torch.arange(vector)) & (7 if given.pool else 1)).flatten(3)
    places = torch.where(codes < 4, codes, -1) if given.pool else codes - 1
    return places.permute(0, 3, 1, 2)


def windows_of(images: Tensor, pool: bool) -> Tensor:
    """(B,C,H,W,positions) of whole windows."""
    if not pool:
        return images.unsqueeze(-1)
    height, width = (size // 2 * 2 for size in images.shape[2:])
    return images[:, :, :height, :width].unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)


GPU_SHAPES = [*SHAPES[:11], ((2, 1100, 2, 2), True), ((1, 2064, 3, 2), False)]


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "pool"), GPU_SHAPES)
def test_kernels_against_float64(
    kernel: Any, shape: tuple[int, int, int, int], pool: bool, dtype: torch.dtype, with_residual: bool
) -> None:
    if pool and with_residual:
        pytest.skip("a residual is added without pooling")
    if kernel.name == "triton" and kernel.slow and shape[0] * shape[2] * shape[3] > 600:
        pytest.skip("too many programs for an interpreter")
    given = problem(shape, dtype=dtype, pool=pool)
    residual = residual_of(given) if with_residual else None
    ours, exact = passes(given, kernel, residual), given.to(torch.float64).leaves()

    mean, var = exact.x.mean((0, 2, 3)), exact.x.var((0, 2, 3), unbiased=False)
    count = given.x.numel() // shape[1]
    assert_near(ours.mean, mean.detach(), 1e-6)
    assert_near(ours.invstd, (var + EPS).rsqrt().detach(), 2e-6)
    assert_near(ours.running_mean, torch.lerp(given.running_mean.double(), mean, MOMENTUM).detach(), 1e-6)
    unbiased = var * count / (count - 1)
    assert_near(ours.running_var, torch.lerp(given.running_var.double(), unbiased, MOMENTUM).detach(), 2e-6)

    centred = exact.x - mean[None, :, None, None]
    alpha = exact.weight * (var + EPS).rsqrt()
    normed = centred * alpha[:, None, None] + exact.bias[:, None, None]
    leaf = None if residual is None else residual.double().requires_grad_()
    y = windows_of(normed if leaf is None else normed + leaf, pool)
    # The value at the place is the result, rounded; no other value of the window is clearly higher.
    roundings = (2**-8 if dtype == torch.bfloat16 else 1e-6) * (1 + (residual is not None))
    room = roundings * windows_of(normed.abs() if leaf is None else normed.abs() + leaf.abs(), pool).amax(-1) + 4e-6
    flows = ours.places >= 0
    chosen = y.gather(-1, ours.places.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    assert ((ours.result.double() - torch.where(flows, chosen, 0.0)).abs() <= room).all()
    assert ((y.amax(-1) - torch.where(flows, chosen, 0.0)).clamp(min=0) <= 2 * room).all()
    assert (ours.result[~flows] == 0).all()
    assert ours.result.is_contiguous(memory_format=torch.channels_last)

    leaves = [exact.x, exact.weight, exact.bias, *([] if leaf is None else [leaf])]
    truth = torch.autograd.grad(torch.where(flows, chosen, 0.0), leaves, exact.upstream)
    tolerance = 6e-8 * (10 + 10 * (given.upstream.numel() // shape[1]) ** 0.5)
    rounding = 2**-8 if dtype == torch.bfloat16 else 0.0
    assert_near(ours.of_x, truth[0], tolerance + rounding)
    assert_near(ours.of_weight, truth[1], tolerance)
    assert_near(ours.of_bias, truth[2], tolerance)
    if leaf is not None:
        assert torch.equal(ours.of_residual.double(), truth[3])


def test_kernels_keep_the_variance_beside_a_large_mean(kernel: Any) -> None:
    """The mean is 3,000 deviations; or the first value, around which not all must be summed, is as far away."""
    given = problem((4, 16, 16, 16), dtype=torch.float32, pool=False)
    given = given._replace(x=given.x + 6000)
    given.x[0, :, 0, 0] = 0.0
    ours = passes(given, kernel)
    var = given.x.double().var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(ours.invstd.double(), (var + EPS).rsqrt(), rtol=1e-5, atol=0)
    others = given._replace(x=given.x.clone())
    others.x[0, :, 0, 0] = others.x[0, :, 1, 1]
    var = others.x.double().var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(passes(others, kernel).invstd.double(), (var + EPS).rsqrt(), rtol=1e-4, atol=0)


def test_kernels_give_ties_to_the_first(kernel: Any) -> None:
    for dtype, channels in product((torch.bfloat16, torch.float32), (8, 5)):
        given = problem((3, channels, 6, 6), dtype=dtype, pool=True)
        given = given._replace(x=given.x.clamp(-1, 1).round(), weight=given.weight.abs() + 0.1)
        windows = windows_of(given.x, True)
        first = (windows == windows.amax(-1, keepdim=True)).int().argmax(-1)  # the first of equal ones
        places = passes(given, kernel).places
        assert torch.equal(places, torch.where(places < 0, -1, first))


@pytest.mark.parametrize("pool", [True, False])
def test_kernels_confine_what_is_not_finite(kernel: Any, pool: bool) -> None:
    given = problem((3, 16, 4, 4), dtype=torch.bfloat16, pool=pool)
    clean = passes(given, kernel)
    given.x[1, 3, 1, 1], given.upstream[1, 9, 1, 1] = float("nan"), float("inf")
    given.bias[5], given.weight[7] = float("nan"), float("inf")
    ours = passes(given, kernel)
    others = [c for c in range(16) if c not in (3, 5, 7, 9)]
    for name in ("result", "running_mean", "running_var", "of_x", "of_weight", "of_bias"):
        mine, before = getattr(ours, name), getattr(clean, name)
        axis = 1 if mine.dim() == 4 else 0
        kept = [tensor.index_select(axis, torch.tensor(others)) for tensor in (mine, before)]
        assert torch.equal(*kept), name
    assert ours.result[:, 3].isnan().all()
    assert ours.result[:, 5].isnan().all()


def test_kernels_take_no_images(kernel: Any) -> None:
    given = problem((0, 5, 4, 4), dtype=torch.float32, pool=True)
    ours = passes(given, kernel)
    assert ours.result.shape == (0, 5, 2, 2)
    assert ours.of_weight.tolist() == ours.of_bias.tolist() == [0.0] * 5
    assert torch.equal(ours.running_mean, given.running_mean)
    assert torch.equal(ours.running_var, given.running_var)


def test_kernels_through_autograd(kernel: Any) -> None:
    """Images of another layout, numbers with gaps, an expanded gradient, a residual."""
    given = problem((4, 16, 6, 6), dtype=torch.float32, pool=False)
    residual = residual_of(given).contiguous()
    expanded = given.upstream[:, :, :1, :1].expand(4, 16, 6, 6)
    results = []
    for one in ("reference", kernel.name):
        device = CPU if one == "reference" else kernel.device
        pairs = [torch.stack([tensor, tensor], -1)[..., 0] for tensor in given[1:5]]
        tensors = to((given.x.contiguous(), *pairs, residual), device)
        leaves = [tensor.detach().requires_grad_() for tensor in (*tensors[:3], tensors[5])]
        keywords = {"momentum": MOMENTUM, "eps": EPS, "pool": False, "residual": leaves[3], "backend": one}
        y = norm_relu_pool(*leaves[:3], *tensors[3:5], **keywords)
        gradients = torch.autograd.grad(y, leaves, expanded.to(device))
        results.append(to((y.detach(), *tensors[3:5], *gradients), CPU))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


X, N = torch.zeros(2, 3, 4, 4), torch.zeros(3)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((X.half(), N, N, N, N), {}, TypeError, r"x must be bfloat16, float32 or float64, got torch\.float16"),
        ((X[0], N, N, N, N), {}, ValueError, r"x must be \(B,C,H,W\) with C >= 1 and H, W >= 2, got \(3, 4, 4\)"),
        ((X[:, :, :1], N, N, N, N), {}, ValueError, r"H, W >= 2, got \(2, 3, 1, 4\)"),
        ((X[:, :, :0], N, N, N, N), {"pool": False}, ValueError, r"H, W >= 1, got \(2, 3, 0, 4\)"),
        ((X[:1, :, :1, :1], N, N, N, N), {"pool": False}, ValueError, "more than one value a channel"),
        ((X, N[:2], N, N, N), {}, ValueError, r"weight must be \(3,\) for this x, got \(2,\)"),
        ((X, N, N.bfloat16(), N, N), {}, TypeError, r"bias must be torch\.float32 for torch\.float32 x"),
        ((X.double(), N, N, N, N), {}, TypeError, r"weight must be torch\.float64 for torch\.float64 x"),
        ((X, N, N, N, N.to("meta")), {}, ValueError, "running_var must be on the device of x, cpu, not on meta"),
        ((X, N, N, N, N), {"residual": X}, ValueError, "a residual is added without pooling: pool=False"),
        ((X, N, N, N, N), {"pool": False, "residual": X[:1]}, ValueError, r"residual must be \(2, 3, 4, 4\) as x is"),
        ((X, N, N, N, N), {"pool": False, "residual": X.double()}, TypeError, r"residual must be torch\.float32"),
        ((X, N, N, N, N), {"pool": False, "residual": 1.0}, TypeError, "residual must be a tensor"),
        ((X, N, N, N, N), {"backend": "fast"}, ValueError, "there is no such backend"),
    ],
)
def test_refusals(arguments: Any, keywords: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        norm_relu_pool(*arguments, momentum=0.1, **keywords)


@needs_cpp
def test_a_direct_call_reads_no_foreign_memory() -> None:
    operator = torch.ops.tfkd_fast.norm_relu_pool
    x = X.contiguous(memory_format=torch.channels_last)
    for arguments in ((X, N, N, N, N), (x, N[:2], N, N, N), (x, N, N, N.double(), N), (x[:, :, :1], N, N, N, N)):
        with pytest.raises(RuntimeError, match=r"channels-last|does not fit|no window"):
            operator(*arguments, 0.1, 1e-5, True)
    for residual in (X, x[:1], x.double()):
        with pytest.raises(RuntimeError, match=r"channels-last|does not fit"):
            operator(x, N, N, N.clone(), N.clone(), 0.1, 1e-5, False, residual)
    _, *saved = operator(x, N, N, N.clone(), N.clone(), 0.1, 1e-5, True)
    gradient = torch.zeros(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    for changed in ((x, x, N, *saved), (gradient, x, N, saved[0][:, :, :, :32], *saved[1:])):
        with pytest.raises(RuntimeError, match="does not fit"):
            torch.ops.tfkd_fast.norm_relu_pool_backward(*changed, True)
