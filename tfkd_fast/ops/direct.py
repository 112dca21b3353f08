"""Convolutions in bfloat16 straight from the maps, on processors with AVX512-BF16.

`direct(x, weight, bias, stride=1)`, `direct_input_gradient(gradient, weight, stride=1)` and
`direct_weight_gradient(gradient, x, weight, stride=1)` of `torch.ops.tfkd_fast` are a convolution and its gradients for
kernels of 3x3 and 1x1, padded so that the maps keep their size but for the stride, 1 or 2. They take x (B,C,H,W) and
gradient (B,K,H',W') in bfloat16, weight (K,C,3,3) or (K,C,1,1) and bias (K,) in float32 or bfloat16, all of any strides
in memory, and return maps in bfloat16, channels last; the gradient of the weight has its dtype and strides. With
stride 2 the gradient of x is that of maps of an even size, H = 2 H'.

Sums are in float32, in an order that depends on the shapes alone, and each result is rounded once. Bias, and weights in
float32, are rounded to bfloat16 first, as by autocast. Subnormal numbers count as zero.

Source: the loops of Georganas et al., "Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures"
(SC 2018), sections II and III; that a source serves all taps of a row at once and that rows are paired is our choice.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tfkd_fast.ops import fused
from tfkd_fast.ops.convolution import TrainingPass, multiplies_pairs


def serves(
    pass_name: TrainingPass,
    x: Sequence[int],
    weight: Sequence[int],
    dtype: torch.dtype,
    stride: int = 1,
) -> bool:
    """Return whether `direct` computes a pass here.

    Args:
        pass_name: the result, the gradient of x, or that of the weight.
        x: shape (B,C,H,W) of x.
        weight: shape (K,C,H,W) of the weight.
        dtype: of x.
        stride: of the convolution, the same for rows and columns.
    """
    sizes_come_back = stride == 1 or (x[2] % stride == 0 and x[3] % stride == 0)
    return (
        multiplies_pairs(dtype)
        and tuple(weight[2:]) in ((3, 3), (1, 1))
        and stride in (1, 2)
        and 0 not in (*x[1:], *weight)
        and (pass_name != "input_gradient" or sizes_come_back)
    )


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    height, width = ((size - 1) // stride + 1 for size in x.shape[2:])
    return _new_maps(x, weight.shape[0], height, width)


def _fake_input_gradient(gradient: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    height, width = gradient.shape[2:]
    return _new_maps(gradient, weight.shape[1], height * stride, width * stride)


def _fake_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    return torch.empty_like(weight)


def _new_maps(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    shape = (like.shape[0], channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


fused.define("direct", None, "(Tensor x, Tensor weight, Tensor? bias, int stride=1) -> Tensor", _fake)
fused.define(
    "direct_input_gradient", None, "(Tensor gradient, Tensor weight, int stride=1) -> Tensor", _fake_input_gradient
)
fused.define(
    "direct_weight_gradient",
    None,
    "(Tensor gradient, Tensor x, Tensor weight, int stride=1) -> Tensor",
    _fake_weight_gradient,
)
