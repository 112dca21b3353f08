"""Algorithms of a 3x3 convolution in bfloat16 on the CPU: which of them computes which pass of which shape.

torch (oneDNN) computes any convolution. Others are faster for some shapes, on some processors, with some number of
threads: `conv_measurement` finds out, and `using` lets `conv3x3` compute by what was found. Without it all is torch's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tfkd_fast.ops import fused

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

    @property
    def operations_of_an_image(self) -> int:
        """Additions and multiplications of one pass, those with the padding included."""
        return 2 * 9 * self.in_channels * self.out_channels * self.height * self.width


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

Serves = Callable[
    [Literal["forward", "input_gradient", "weight_gradient"], tuple[int, ...], tuple[int, ...], torch.dtype], bool
]
"""`serves(pass, shape of x, shape of weight, dtype of x)`: whether an algorithm computes a pass on this machine."""


class Algorithm(NamedTuple):
    """An algorithm in three operators of x (B,C,H,W) bfloat16, weight (K,C,3,3), bias and gradient (B,K,H,W)."""

    forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    input_gradient: Callable[[Tensor, Tensor], Tensor]
    """Takes gradient and weight."""
    weight_gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Takes gradient, x and weight; gives the dtype of the weight."""
    serves: Serves


ALGORITHMS: dict[str, Algorithm] = {}
"""The algorithms by name, torch's first; `register` adds others."""

_choices: Choices = {}
_recorded: dict[Convolution, frozenset[Pass]] | None = None


def register(name: str, operator: str, serves: Serves) -> None:
    """Add an algorithm, whose operators are `operator`, `operator`_input_gradient and `operator`_weight_gradient."""
    suffixes = ("", "_input_gradient", "_weight_gradient")
    operators = [fused.overload(fused.NAMESPACES["cpp"], f"{operator}{suffix}") for suffix in suffixes]
    ALGORITHMS[name] = Algorithm(operators[0], operators[1], operators[2], serves)


# Choosing.


def find_algorithms(x: Tensor, weight: Tensor, *, fixed: bool = False) -> Algorithms | None:
    """The algorithms of a call; None where all of them are torch's. `fixed` weights stay as they are."""
    if (not _choices and _recorded is None) or x.dtype != torch.bfloat16 or not x.is_cpu:
        return None
    _, inputs, height, width = x.shape
    convolution = Convolution(inputs, height, width, weight.shape[0], weight.dtype)
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
    inputs, height, width, outputs, _ = convolution
    computed: Literal["forward", "input_gradient", "weight_gradient"] = "forward" if name == "inference" else name
    call = computed, (batch, inputs, height, width), (outputs, inputs, 3, 3), torch.bfloat16
    return [own for own, algorithm in ALGORITHMS.items() if algorithm.serves(*call)]


# Computing.


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, algorithms: Algorithms) -> Tensor:
    """A convolution, and later its gradients, each by its algorithm; arguments as of `conv3x3`, with bfloat16 x."""
    if not torch.is_grad_enabled():
        return ALGORITHMS[algorithms.forward].forward(x, weight, bias)
    result: Tensor = _Convolve.apply(x, weight, bias, algorithms)
    return result


def convolve_by_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution and its gradients by torch, which differentiates them again, too."""
    # cast here, not by autocast, which leaves tensors that torch.func maps as they are
    return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)


class _Convolve(torch.autograd.Function):
    """A convolution whose passes have an algorithm each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, algorithms: Algorithms) -> Tensor:
        rounded = weight.to(x.dtype) if "torch" in algorithms[:2] else weight  # once for both
        ctx.save_for_backward(x, weight, rounded)
        ctx.algorithms, ctx.bias_dtype = algorithms, None if bias is None else bias.dtype
        own = algorithms.forward
        return ALGORITHMS[own].forward(x, rounded if own == "torch" else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rounded = ctx.saved_tensors
        fused.refuse_tangent("conv3x3", gradient)
        needed, (_, own, last, _) = ctx.needs_input_grad, ctx.algorithms
        return (
            ALGORITHMS[own].input_gradient(gradient, rounded if own == "torch" else weight) if needed[0] else None,
            ALGORITHMS[last].weight_gradient(gradient, x, weight) if needed[1] else None,
            gradient.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype) if needed[2] else None,
            None,
        )


def _torch_input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    shape, layout = (gradient.shape[0], weight.shape[1], *gradient.shape[2:]), torch.channels_last
    shaped = torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=layout)
    return _torch_gradients(gradient, shaped, weight.to(gradient.dtype), (True, False, False))[0]


def _torch_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    shaped = torch.empty_like(weight, dtype=x.dtype)
    return _torch_gradients(gradient, x, shaped, (False, True, False))[1].to(weight.dtype)


def _torch_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias that are wanted; values of what a gradient is of are not read for it."""
    ones = (1, 1)
    arguments = (None, ones, ones, ones, False, (0, 0), 1)  # bias, stride, padding, dilation, ..., groups
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward.default(
        gradient, x, weight, *arguments, wanted
    )
    return gradients


ALGORITHMS["torch"] = Algorithm(convolve_by_torch, _torch_input_gradient, _torch_weight_gradient, lambda *call: True)
