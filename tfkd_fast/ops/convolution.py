"""The schemas that all algorithms of a 3x3 convolution share: stride 1, padding 1, results channels last."""

import torch
from torch import Tensor

from tfkd_fast.ops import fused


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


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fake_input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    return _fake(gradient, weight.transpose(0, 1), None)


def _fake_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(weight)
