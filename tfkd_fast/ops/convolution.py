"""What algorithms of a convolution share: the schemas of those that are 3x3 with stride 1 and padding 1, whose results
are channels last, the gradient of the bias, what follows in inference, and what they ask of the machine."""

from typing import Literal

import torch
from torch import Tensor

from tfkd_fast.ops import backends, fused

TrainingPass = Literal["forward", "input_gradient", "weight_gradient"]
"""What an algorithm computes: the result, the gradient of x, or that of the weight."""


def multiplies_pairs(dtype: torch.dtype) -> bool:
    """Return whether the compiled operators can multiply numbers of this dtype by AVX512-BF16 here."""
    return backends.native_library.missing is None and torch.cpu._is_avx512_bf16_supported() and dtype == torch.bfloat16


def define(name: str) -> None:
    """Define the operators of an algorithm: `name`, `name_input_gradient` and `name_weight_gradient`.

    They take x (B,C,H,W), weight (K,C,3,3), bias (K,) and gradient (B,K,H,W), of any strides. The gradient of the
    weight has the dtype and the strides of the weight.
    """
    fused.define(name, None, "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _fake)
    fused.define(f"{name}_input_gradient", None, "(Tensor gradient, Tensor weight) -> Tensor", _fake_input_gradient)
    fused.define(
        f"{name}_weight_gradient", None, "(Tensor gradient, Tensor x, Tensor weight) -> Tensor", _fake_weight_gradient
    )


def bias_gradient(gradient: Tensor) -> Tensor:
    """Return the sums (K,) float32 of gradient (B,K,H,W) over all positions.

    In bfloat16 on the CPU they are added in an order that depends on the shape alone.
    """
    if backends.native_library.missing is None and gradient.is_cpu and gradient.dtype == torch.bfloat16:
        result: Tensor = _bias_gradient(gradient)
        return result
    return gradient.sum((0, 2, 3), dtype=torch.float32)


def finish_inference(y: Tensor, add: Tensor | None = None, *, relu: bool = False, pool: bool = False) -> Tensor:
    """Return maps y (B,K,H,W), the result of a convolution, plus `add`, after ReLU and 2x2 max-pooling of stride 2.

    y may be overwritten, and there is no gradient. In bfloat16 on the CPU a sum with ReLU, or ReLU with pooling, is one
    pass; the result is that of torch's functions to the last bit.
    """
    fused_too = backends.native_library.missing is None and y.is_cpu and y.dtype == torch.bfloat16 and y.numel() > 0
    if add is not None and fused_too and add.dtype == y.dtype and add.shape == y.shape and relu:
        y, add, relu = _relu_pool(y, add, True, False), None, False
    if add is not None:
        y = y.add_(add)
    if pool and fused_too and min(y.shape[2:]) > 1:
        return _relu_pool(y, None, relu, True)
    if relu:
        y = y.relu_()
    return max_pool(y) if pool else y


def norm_relu(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor | None:
    """Return maps x (B,C,H,W) after batch norm by the running statistics `mean` and `var` (C,), and ReLU, in one pass.

    None where that is not served: it is for bfloat16 on the CPU, without a gradient and outside of transforms.
    """
    if backends.native_library.missing is not None or backends.forced() == "reference" or torch.is_grad_enabled():
        return None
    if x.dtype != torch.bfloat16 or not x.is_cpu or x.numel() == 0 or weight.dtype != torch.float32:
        return None
    if torch.compiler.is_compiling() or fused.inside_torch_func() or fused.forward_mode():
        return None
    result: Tensor = _norm_relu(x, weight, bias, mean, var, eps)
    return result


def max_pool(x: Tensor) -> Tensor:
    """Return the largest values of the 2x2 windows of x (B,C,H,W), without the indices that torch's operator makes."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    rows = torch.maximum(x[:, :, 0:height:2, :width], x[:, :, 1:height:2, :width])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fake_input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    return _fake(gradient, weight.transpose(0, 1), None)


def _fake_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(weight)


def _fake_bias_gradient(gradient: Tensor) -> Tensor:
    return gradient.new_empty((gradient.shape[1],), dtype=torch.float32)


def _fake_relu_pool(x: Tensor, residual: Tensor | None, relu: bool, pool: bool) -> Tensor:
    batch, channels, height, width = x.shape
    shape = (batch, channels, height // 2, width // 2) if pool else x.shape
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fake_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


fused.define("bias_gradient", None, "(Tensor gradient) -> Tensor", _fake_bias_gradient)
_bias_gradient = fused.overload(fused.NAMESPACES["cpp"], "bias_gradient")
fused.define("relu_pool", None, "(Tensor x, Tensor? residual, bool relu, bool pool) -> Tensor", _fake_relu_pool)
_relu_pool = fused.overload(fused.NAMESPACES["cpp"], "relu_pool")
fused.define(
    "norm_relu",
    None,
    "(Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor var, float eps) -> Tensor",
    _fake_norm_relu,
)
_norm_relu = fused.overload(fused.NAMESPACES["cpp"], "norm_relu")
