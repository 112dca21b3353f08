"""3x3 convolution for networks of small images, whose last maps are mostly border."""

import torch
from torch import Tensor

from tfkd_fast.ops import backends, checks, conv_algorithms, convolution, direct, fused, winograd
from tfkd_fast.ops.conv_algorithms import Algorithms, Pass


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Convolution of stride 1 and padding 1 in the dtype of x, or inside an autocast region in that of the region.

    Args:
        x: (B,C,H,W) floating point.
        weight: (K,C,3,3), float32 or of the dtype of x; its gradient is of the same dtype.
        bias: (K,), of the dtype of the weight.
        backend: an operator backend; None takes the algorithms that `conv_algorithms` has for the shape, which a run
            measures in bfloat16 on the CPU, and the reference where it has none.

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
    if backend is not None:
        result: Tensor = backends.select("conv3x3", backend, x)(x, weight, bias)
        return result
    return conv_algorithms.convolve_as_chosen(x, weight, bias)


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
    return conv_algorithms.convolve_by_torch(x, weight, bias)


# The compiled backend: matrix products over the taps that fall inside the map.

_MULTIPLIES_BFLOAT16: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
_TAPS = Algorithms("taps", "taps", "taps")


def _refuses(x: Tensor) -> str | None:
    if x.dtype != torch.bfloat16:
        return f"it serves bfloat16 tensors, not {x.dtype} tensors"
    if not _MULTIPLIES_BFLOAT16:
        return "this processor has no matrix product in bfloat16"
    return fused.cpp_refuses(x)


def _cpp(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    fused.refuse_tangent("conv3x3", x, weight, bias)
    return conv_algorithms.convolve(x, weight, bias, _TAPS)


def _taps_serve(name: Pass, x: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype, stride: int) -> bool:
    fits = weight[2:] == (3, 3) and stride == 1 and 0 not in (*x, *weight)
    return fits and _MULTIPLIES_BFLOAT16 and backends.native_library.missing is None


convolution.define("conv3x3")
conv_algorithms.register("taps", "conv3x3", _taps_serve)
conv_algorithms.register("winograd", "winograd", winograd.serves)
conv_algorithms.register("direct", "direct", direct.serves)
backends.register("conv3x3", "reference", _reference)
backends.register(
    "conv3x3",
    "cpp",
    _cpp,
    refuses=_refuses,
    about=backends.native_library.about,
)
