"""3x3 convolution for networks of small images, whose last maps are mostly border."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tfkd_fast.ops import backends, checks, convolution, fused


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Convolution of stride 1 and padding 1 in the dtype of x, or inside an autocast region in that of the region.

    Args:
        x: (B,C,H,W) floating point.
        weight: (K,C,3,3), float32 or of the dtype of x; its gradient is of the same dtype.
        bias: (K,), of the dtype of the weight.
        backend: an operator backend; None picks the fastest that serves the tensors: cpp for wide layers on small maps
            in bfloat16.

    Returns:
        (B,K,H,W). From channels-last x it is channels-last; from cpp always.

    Raises:
        ValueError: for shapes that do not fit; TypeError for dtypes and for arguments that are no tensors.
        RuntimeError: from cpp, named as the backend, for forward-mode differentiation; None takes the reference for it.
    """
    checks.check_tensors(x=x, weight=weight)
    checks.check_optional_tensors(bias=bias)
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    if x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    _check(x, weight, bias)
    # torch.func and forward-mode differentiation know torch's own operators
    if backend is None and (
        fused.inside_torch_func() or not _is_faster(x, weight) or fused.has_tangent(x, weight, bias)
    ):
        backend = "reference"
    result: Tensor = backends.select("conv3x3", backend, x)(x, weight, bias)
    return result


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"weight must be (K,C,3,3), got {tuple(weight.shape)}")
    if x.dim() != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x must be (B,{weight.shape[1]},H,W) for this weight, got {tuple(x.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},) for this weight, got {tuple(bias.shape)}")
    if weight.dtype not in (torch.float32, x.dtype):
        raise TypeError(f"weight must be torch.float32 or of the dtype of x, {x.dtype}, got {weight.dtype}")
    checks.check_device("weight", weight, "x", x)
    if bias is not None:
        checks.check_device("bias", bias, "x", x)
    if bias is not None and bias.dtype != weight.dtype:
        raise TypeError(f"bias must be {weight.dtype} as the weight is, got {bias.dtype}")


# The definition.


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # cast here, not by autocast, which leaves tensors that torch.func maps as they are
    return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)


# The compiled backend.

# Measured on AVX-512 against oneDNN's convolution, which computes on the padding, too: 144 taps instead of 100 at 4x4.
# Larger maps save too little; narrower layers are no slower there; few rows do not make good for laying out the weight.
MOST_POSITIONS = 25
FEWEST_ROWS = 256
FEWEST_CHANNEL_PAIRS = 256 * 256

_MULTIPLIES_BFLOAT16: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _is_faster(x: Tensor, weight: Tensor) -> bool:
    """Return whether cpp is faster for a call. Other calls take the reference, whatever backend is forced."""
    if x.dtype != torch.bfloat16 or not _MULTIPLIES_BFLOAT16:
        return False
    positions = x.shape[2] * x.shape[3]
    return (
        0 < positions <= MOST_POSITIONS
        and x.shape[0] * positions >= FEWEST_ROWS
        and weight.shape[0] * weight.shape[1] >= FEWEST_CHANNEL_PAIRS
    )


def _refuses(x: Tensor) -> str | None:
    if x.dtype != torch.bfloat16:
        return f"it serves bfloat16 tensors, not {x.dtype} tensors"
    if not _MULTIPLIES_BFLOAT16:
        return "this processor has no matrix product in bfloat16"
    return fused.cpp_refuses(x)


def _cpp(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    fused.refuse_tangent("conv3x3", x, weight, bias)
    result: Tensor = _operators.conv3x3(x, weight, bias)
    return result


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


@once_differentiable
def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    fused.refuse_tangent("conv3x3", gradient)
    of_x, of_weight, of_bias = ctx.needs_input_grad
    return (
        _operators.conv3x3_input_gradient(gradient, weight) if of_x else None,
        _operators.conv3x3_weight_gradient(gradient, x, weight) if of_weight else None,
        gradient.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype) if of_bias else None,
    )


convolution.define("conv3x3")
_operators = getattr(torch.ops, fused.NAMESPACES["cpp"])
torch.library.register_autograd(f"{fused.NAMESPACES['cpp']}::conv3x3", _backward, setup_context=_setup_context)
backends.register("conv3x3", "reference", _reference)
backends.register(
    "conv3x3",
    "cpp",
    _cpp,
    refuses=_refuses,
    about=backends.native_library.about,
)
