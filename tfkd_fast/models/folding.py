"""Inference with weights that stay as they are: batch norm becomes a part of the convolution before it, and oneDNN
computes ReLU and the sum with a shortcut in the same pass. They follow in one pass where another algorithm was chosen,
and so does max-pooling.

On the CPU only; on other devices everything is as without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tfkd_fast.ops import conv_algorithms, fused
from tfkd_fast.ops.conv_algorithms import ALGORITHMS
from tfkd_fast.ops.convolution import finish_inference

_FUSES: bool = torch.backends.mkldnn.is_available()
_FUSES_BFLOAT16: bool = _FUSES and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class FoldingConv(nn.Conv2d):
    """A convolution that may be computed together with the batch norm after it."""

    foldings: "Foldings | None" = None
    """What it computes with while its weights stay as they are; None while they may change."""

    def folded(self, norm: nn.BatchNorm2d | None, x: Tensor) -> "Folded | None":
        """This convolution and the batch norm after it as one convolution of maps such as x (B,C,H,W).

        None where they are computed one after the other: in training, for gradients, inside of torch.func and
        torch.compile, for x that is neither float32 nor bfloat16, and while weights may change.
        """
        foldings = self.foldings
        if foldings is None or torch.is_grad_enabled() or torch.compiler.is_compiling() or fused.inside_torch_func():
            return None
        if norm is not None and (norm.training or norm.running_var is None):
            return None
        if x.device.type != "cpu" or not x.numel() or not torch.backends.mkldnn.enabled:
            return None
        if not (_FUSES_BFLOAT16 if x.dtype == torch.bfloat16 else _FUSES and x.dtype == torch.float32):
            return None
        key = None if norm is None else id(norm), x.dtype
        if key not in foldings:
            foldings[key] = Folded(self, norm, x)
        return foldings[key]


class Foldings(dict[Any, "Folded"]):
    """Folded convolutions by batch norm and dtype. A copy of the network, or one that is read from a file, makes its
    own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Foldings, ()


class Folded:
    """A convolution and the batch norm after it as one convolution with a bias."""

    def __init__(self, conv: FoldingConv, norm: nn.BatchNorm2d | None, x: Tensor) -> None:
        """Fold; x gives dtype and size of the maps."""
        weight, bias = conv.weight, conv.bias
        if bias is None:
            bias = weight.new_zeros(conv.out_channels)
        if norm is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight, bias = weight * factor.view(-1, 1, 1, 1), norm.bias + (bias - norm.running_mean) * factor
        self._geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self._weight = weight
        self._laid_out: Tensor | None = None
        self._bias, self._rounded_bias = bias, bias.to(x.dtype)
        kernel, self._stride = conv.kernel_size[0], conv.stride[0]
        keeps_size = self._geometry == ([kernel // 2] * 2, [self._stride] * 2, [1, 1], 1)
        self._has_algorithms = keeps_size and conv.kernel_size == (kernel, kernel)

    def __call__(self, x: Tensor, *, add: Tensor | None = None, relu: bool = False, pool: bool = False) -> Tensor:
        """The convolution of x (B,C,H,W), plus `add`, then ReLU with `relu` and 2x2 max-pooling with `pool`;
        channels-last from channels-last x."""
        if self._has_algorithms:
            algorithms = conv_algorithms.find_algorithms(x, self._weight, self._stride, fixed=True)
            if algorithms is not None and algorithms.inference != "torch":
                y = ALGORITHMS[algorithms.inference].forward(x, self._weight, self._bias, self._stride)
                return finish_inference(y, add, relu=relu, pool=pool)
        y = self._by_torch(x, add, relu)
        return finish_inference(y, pool=True) if pool else y

    def _by_torch(self, x: Tensor, add: Tensor | None, relu: bool) -> Tensor:
        if self._laid_out is None:  # as oneDNN wants the weight for maps of this size
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            self._laid_out = reorder(self._weight.to(x.dtype), *self._geometry, list(x.shape))
        convolve = torch.ops.mkldnn._convolution_pointwise
        if add is not None and self._geometry[3] > 1:  # oneDNN adds nothing to grouped convolutions in bfloat16
            return finish_inference(self._by_torch(x, None, relu=False), add, relu=relu)
        if add is None:
            return convolve(x, self._laid_out, self._bias, *self._geometry, "relu" if relu else "none", [], "")
        bias, last = self._rounded_bias, "relu" if relu else None  # a sum takes no bias of another dtype than the maps
        return convolve.binary(x, add, self._laid_out, bias, *self._geometry, "add", 1.0, last, [], "")


def fix_weights(network: nn.Module) -> None:
    """Note that weights and running statistics of a network, such as a teacher, do not change any more."""
    for module in network.modules():
        if isinstance(module, FoldingConv):
            module.foldings = Foldings()


@contextmanager
def fixed_weights(network: nn.Module) -> Iterator[None]:
    """Context manager in which weights and running statistics of a network do not change."""
    before = [(module, module.foldings) for module in network.modules() if isinstance(module, FoldingConv)]
    fix_weights(network)
    try:
        yield
    finally:
        for module, foldings in before:
            module.foldings = foldings
