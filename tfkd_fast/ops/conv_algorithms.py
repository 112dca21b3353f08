"""Algorithms of a convolution in bfloat16 on the CPU: which of them computes which pass of which shape.

Maps are padded so that they keep their size, but for the stride.

torch (oneDNN) computes any convolution. Others are faster for some shapes, on some processors, with some number of
threads: `conv_measurement` finds out, and `using` lets `convolve_as_chosen` compute by what was found. Without it all
is torch's.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tfkd_fast.ops import backends, fused
from tfkd_fast.ops.convolution import TrainingPass, bias_gradient

Pass = Literal["forward", "input_gradient", "weight_gradient", "inference"]
"""What is computed: the result in training, its gradients, and the result for weights that stay as they are, with ReLU
after it, which torch lays out once and computes in one pass (`tfkd_fast.models.folding`)."""
PASSES: tuple[Pass, ...] = get_args(Pass)


class Convolution(NamedTuple):
    """The shape of a convolution, whatever its batch."""

    in_channels: int
    height: int
    width: int
    out_channels: int
    weight_dtype: torch.dtype
    kernel: int = 3
    """Rows and columns of the weight, an odd number."""
    stride: int = 1

    def shapes(self, batch: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The shapes of x, of the weight and of the result for so many images."""
        height, width = ((size - 1) // self.stride + 1 for size in (self.height, self.width))
        return (
            (batch, self.in_channels, self.height, self.width),
            (self.out_channels, self.in_channels, self.kernel, self.kernel),
            (batch, self.out_channels, height, width),
        )

    @property
    def operations_of_an_image(self) -> int:
        """Additions and multiplications of one pass, those with the padding included."""
        _, weight, result = self.shapes(1)
        return 2 * math.prod(weight) * math.prod(result[2:])


class Algorithms(NamedTuple):
    """The name of the algorithm of each pass."""

    forward: str = "torch"
    input_gradient: str = "torch"
    weight_gradient: str = "torch"
    inference: str = "torch"


TORCH = Algorithms()

Choices = dict[Convolution, Algorithms]
"""The algorithms of some convolutions; others are torch's."""

Passes = Mapping[Convolution, frozenset[Pass]]
"""The passes of some convolutions that are wanted."""

Serves = Callable[[TrainingPass, tuple[int, ...], tuple[int, ...], torch.dtype, int], bool]
"""`serves(pass, shape of x, shape of weight, dtype of x, stride)`: whether an algorithm computes a pass here."""


class Algorithm(NamedTuple):
    """An algorithm in three functions of x and gradient in bfloat16, weight, bias, and at last the stride."""

    forward: Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
    input_gradient: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    """Takes gradient, x, whose values are not read, and weight."""
    weight_gradient: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    """Takes gradient, x and weight; gives the dtype of the weight."""
    serves: Serves


ALGORITHMS: dict[str, Algorithm] = {}
"""The algorithms by name, torch's first; `register` adds others."""

_choices: Choices = {}
_recorded: dict[Convolution, frozenset[Pass]] | None = None


def register(name: str, operator: str, serves: Serves) -> None:
    """Add an algorithm, whose operators are `operator`, `operator`_input_gradient and `operator`_weight_gradient.

    Their last argument is the stride where it is not 1.
    """
    suffixes = ("", "_input_gradient", "_weight_gradient")
    forward, of_x, of_weight = (fused.overload(fused.NAMESPACES["cpp"], f"{operator}{suffix}") for suffix in suffixes)

    def last(stride: int) -> tuple[int, ...]:
        return () if stride == 1 else (stride,)

    ALGORITHMS[name] = Algorithm(
        lambda x, weight, bias, stride: forward(x, weight, bias, *last(stride)),
        lambda gradient, x, weight, stride: of_x(gradient, weight, *last(stride)),
        lambda gradient, x, weight, stride: of_weight(gradient, x, weight, *last(stride)),
        serves,
    )


# Choosing.


def find_algorithms(x: Tensor, weight: Tensor, stride: int = 1, *, fixed: bool = False) -> Algorithms | None:
    """The algorithms of a call; None where all of them are torch's. `fixed` weights stay as they are."""
    if (not _choices and _recorded is None) or x.dtype != torch.bfloat16 or not x.is_cpu:
        return None
    _, inputs, height, width = x.shape
    convolution = Convolution(inputs, height, width, weight.shape[0], weight.dtype, weight.shape[2], stride)
    if _recorded is not None:
        _record(convolution, {"inference"} if fixed else _training_passes(x, weight))
    return _choices.get(convolution)


@contextmanager
def using(choices: Choices) -> Iterator[None]:
    """Compute by these algorithms, in the whole process, while the context is open."""
    global _choices
    previous, _choices = _choices, {key: names for key, names in choices.items() if names != TORCH}
    try:
        yield
    finally:
        _choices = previous


@contextmanager
def recording() -> Iterator[dict[Convolution, frozenset[Pass]]]:
    """The convolutions that are called while the context is open, with their passes, those of gradients included."""
    global _recorded
    previous, _recorded = _recorded, {}
    try:
        yield _recorded
    finally:
        _recorded = previous


def _record(convolution: Convolution, passes: set[Pass]) -> None:
    assert _recorded is not None
    _recorded[convolution] = _recorded.get(convolution, frozenset()) | passes


def _training_passes(x: Tensor, weight: Tensor) -> set[Pass]:
    passes: set[Pass] = {"forward"}
    if torch.is_grad_enabled():
        passes |= {"input_gradient"} if x.requires_grad else set()
        passes |= {"weight_gradient"} if weight.requires_grad else set()
    return passes


def serving(name: Pass, convolution: Convolution, batch: int) -> list[str]:
    """The names of the algorithms, torch's first, that compute a pass of a convolution on this machine."""
    x, weight, _ = convolution.shapes(batch)
    computed: TrainingPass = "forward" if name == "inference" else name
    call = computed, x, weight, torch.bfloat16, convolution.stride
    return [own for own, algorithm in ALGORITHMS.items() if algorithm.serves(*call)]


# Computing.


def convolve_as_chosen(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """The convolution by the algorithms of `using`, in the dtype of x, or inside an autocast region in its dtype.

    Args:
        x: (B,C,H,W) floating point; from channels-last x the result is channels-last.
        weight: (K,C,n,n) with n odd, float32 or of the dtype of x; its gradient is of the same dtype.
        bias: (K,), of the dtype of the weight.
        stride: of rows and columns.
    """
    if x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    algorithms = None if backends.forced() == "reference" else find_algorithms(x, weight, stride)
    # torch.func and forward-mode differentiation know torch's own operators
    if algorithms is None or fused.inside_torch_func() or fused.has_tangent(x, weight, bias):
        return convolve_by_torch(x, weight, bias, stride)  # x has the dtype of the region, which changes nothing more
    return convolve(x, weight, bias, algorithms, stride)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, algorithms: Algorithms, stride: int = 1) -> Tensor:
    """A convolution of bfloat16 x, and later its gradients, each by its algorithm."""
    if not torch.is_grad_enabled():
        return ALGORITHMS[algorithms.forward].forward(x, weight, bias, stride)
    result: Tensor = _Convolve.apply(x, weight, bias, algorithms, stride)
    return result


def convolve_by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """The convolution and its gradients by torch, which differentiates them again, too."""
    # cast here, not by autocast, which leaves tensors that torch.func maps as they are
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    x, stride = _read_positions(x, weight, stride)
    return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[2] // 2)


class _Convolve(torch.autograd.Function):
    """A convolution whose passes have an algorithm each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, algorithms: Algorithms, stride: int
    ) -> Tensor:
        rounded = weight.to(x.dtype) if "torch" in algorithms[:2] else weight  # once for both
        ctx.save_for_backward(x, weight, rounded)
        ctx.algorithms, ctx.stride, ctx.bias_dtype = algorithms, stride, None if bias is None else bias.dtype
        own = algorithms.forward
        return ALGORITHMS[own].forward(x, rounded if own == "torch" else weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rounded = ctx.saved_tensors
        kernel = "x".join(map(str, weight.shape[2:]))
        fused.refuse_tangent(f"a {kernel} convolution", gradient, remedy='ops.using_backend("reference")')
        needed, stride, (_, own, last, _) = ctx.needs_input_grad, ctx.stride, ctx.algorithms
        of_x, of_weight = ALGORITHMS[own].input_gradient, ALGORITHMS[last].weight_gradient
        return (
            of_x(gradient, x, rounded if own == "torch" else weight, stride) if needed[0] else None,
            of_weight(gradient, x, weight, stride) if needed[1] else None,
            bias_gradient(gradient).to(ctx.bias_dtype) if needed[2] else None,
            None,
            None,
        )


def _torch_input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return _torch_gradients(gradient, x, weight.to(gradient.dtype), stride, (True, False, False))[0]


def _torch_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    shaped = torch.empty_like(weight, dtype=x.dtype)
    x, stride = _read_positions(x, weight, stride)
    return _torch_gradients(gradient, x, shaped, stride, (False, True, False))[1].to(weight.dtype)


FEWEST_CHANNELS = 16
"""Input channels below which torch's gradient of strided 1x1 weights in bfloat16 is not asked for."""


def _read_positions(x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, int]:
    """x and the stride of a convolution, or the positions of x that it reads and stride 1, which is the same.

    Of strided 1x1 convolutions with few input channels in bfloat16, the gradient of the weight writes beyond its memory
    in torch 2.14 (oneDNN) where maps are wide (from about 80 pixels on), which ends the process.
    """
    few = stride > 1 and weight.shape[2] == 1 and x.shape[1] < FEWEST_CHANNELS
    if few and x.dtype is torch.bfloat16 and x.device.type == "cpu":
        return x[..., ::stride, ::stride], 1
    return x, stride


def _torch_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias that are wanted; values of what a gradient is of are not read for it."""
    strides, padding, dilation = (stride, stride), (weight.shape[2] // 2,) * 2, (1, 1)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward.default(
        gradient, x, weight, None, strides, padding, dilation, False, (0, 0), 1, wanted
    )
    return gradients


ALGORITHMS["torch"] = Algorithm(convolve_by_torch, _torch_input_gradient, _torch_weight_gradient, lambda *call: True)
