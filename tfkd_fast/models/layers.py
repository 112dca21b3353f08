"""Layers of the networks.

The layers convert weights and images to one dtype by themselves, because autocast does not convert tensors that
torch.func maps. The first convolution converts the images to the dtype of the autocast region, by its operator.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast import ops
from tfkd_fast.models.batch_norm import SynchronisedNorms
from tfkd_fast.models.folding import FoldingConv
from tfkd_fast.ops import conv_algorithms, fused
from tfkd_fast.ops.convolution import norm_relu


class Conv(FoldingConv):
    """A convolution whose padding keeps the size of the image, but for the stride."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, *, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (3, 3) and self.stride == (1, 1):
            return ops.conv3x3(x, self.weight, self.bias)
        return conv_algorithms.convolve_as_chosen(x, self.weight, self.bias, self.stride[0])


class GroupedConv(FoldingConv):
    """A convolution in groups of channels without a bias, whose padding keeps the size of the image, but for the
    stride; with as many groups as channels it is depthwise."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return convolve_grouped(self, x)


class StridedGroupedConv(nn.Conv2d):
    """A strided convolution in groups that computes as `convolve_grouped` does."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve_grouped(self, x)


def convolve_grouped(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of x in the dtype of the autocast region.

    On the CPU, in bfloat16, the gradient of a strided depthwise convolution for its input takes oneDNN ten to twenty
    times as long as in float32. Where one is needed, the rounded numbers are convolved in float32, and what comes out
    is rounded.
    """
    x = x.to(region_dtype(x))
    weight, bias = conv.weight.to(x.dtype), None if conv.bias is None else conv.bias.to(x.dtype)
    is_slow = x.device.type == "cpu" and x.dtype == torch.bfloat16 and conv.groups > 1 and max(conv.stride) > 1
    if not (is_slow and x.requires_grad and torch.is_grad_enabled()):
        return conv._conv_forward(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        return conv._conv_forward(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def region_dtype(x: Tensor) -> torch.dtype:
    """The dtype that convolutions of x compute in: that of the autocast region, or its own outside of one."""
    device = x.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also works for bfloat16 images which torch.func maps."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype or not fused.inside_torch_func():
            return super().forward(x)
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)  # torch.func maps no batch norm of two dtypes


def norm_relu_pool(norm: nn.Module, x: Tensor, *, pool: bool = False, add: Tensor | None = None) -> Tensor:
    """Apply batch norm, the sum with `add`, ReLU and, with `pool`, 2x2 max-pooling to x (B,C,H,W); in training by
    one process, and without one of the two, this is one operator."""
    assert isinstance(norm, nn.BatchNorm2d)
    batches, mean, var = norm.num_batches_tracked, norm.running_mean, norm.running_var
    if not norm.training and add is None and not pool and mean is not None and var is not None:
        finished = norm_relu(x, norm.weight, norm.bias, mean, var, norm.eps)
        if finished is not None:
            return finished
    apart = not norm.training or (pool and add is not None) or SynchronisedNorms.are_active
    if apart or batches is None or mean is None or var is None:
        x = norm(x)
        x = F.relu(x if add is None else x + add)
        return F.max_pool2d(x, 2) if pool else x
    batches.add_(1)
    momentum = 1.0 / float(batches) if norm.momentum is None else norm.momentum  # None: the average of all batches
    numbers = norm.weight, norm.bias, mean, var
    return ops.norm_relu_pool(x, *numbers, momentum=momentum, eps=norm.eps, pool=pool, residual=add)


def convolve(
    conv: nn.Module,
    x: Tensor,
    norm: nn.Module | None = None,
    *,
    add: Tensor | None = None,
    relu: bool = False,
    pool: bool = False,
) -> Tensor:
    """Apply a convolution to x (B,C,H,W), then what is asked for of batch norm, the sum with `add`, ReLU, and 2x2
    max-pooling after ReLU. While the weights of the network stay as they are, that is one operator before pooling, see
    `folding`."""
    assert isinstance(conv, FoldingConv)
    assert norm is None or isinstance(norm, nn.BatchNorm2d)
    if conv.foldings is not None and x.device.type == "cpu":
        x = x.to(region_dtype(x))
    folded = conv.folded(norm, x)
    if folded is not None:
        return folded(x, add=add, relu=relu, pool=pool)
    y = conv(x)
    if norm is not None and relu:
        return norm_relu_pool(norm, y, pool=pool, add=add)
    y = y if norm is None else norm(y)
    y = y if add is None else y + add
    y = F.relu(y) if relu else y
    return F.max_pool2d(y, 2) if pool else y


def average_pool(x: Tensor) -> Tensor:
    """Return the means (B,C) of x (B,C,H,W) over all positions."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)  # its gradient is channels-last, too


def average_pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average-pool maps (B,C,H,W) to (B,C,*size).

    If the sizes divide, the gradient is deterministic on CUDA; that of adaptive pooling is not.
    """
    height, width = maps.shape[-2:]
    if height % size[0] or width % size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.avg_pool2d(maps, (height // size[0], width // size[1]))


class Classifier(nn.Linear):
    """The linear layer that computes the logits, in the dtype of its weight even inside an autocast region."""

    def forward(self, pooled: Tensor) -> Tensor:
        with torch.autocast(
            pooled.device.type, enabled=False
        ):  # logits in bf16 would have ties and be too coarse for soft targets
            return super().forward(pooled.to(self.weight.dtype))


def exact_logits(network: nn.Module, num_classes: int) -> nn.Module:
    """Let the last linear layer of a network compute the logits as `Classifier` does; returns the network."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if linear and type(linear[-1]) is nn.Linear and linear[-1].out_features == num_classes:
        linear[-1].__class__ = Classifier  # its tensors, and their names, stay as they are
    return network


class SampledConv(nn.Conv2d):
    """A strided 1x1 convolution that reads no position it skips, as `conv_algorithms.FEWEST_CHANNELS` wants it."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], self.weight, self.bias)


def replace_strided(network: nn.Module) -> nn.Module:
    """Let the strided convolutions in a network that are 1x1 of few channels, or in groups, compute as `SampledConv`
    and `StridedGroupedConv` do; returns the network."""
    convolutions = [module for module in network.modules() if type(module) is nn.Conv2d]
    for conv in (conv for conv in convolutions if max(conv.stride) > 1):
        samples = conv.kernel_size == (1, 1) and conv.padding == (0, 0)
        if samples and conv.groups == 1 and conv.in_channels < conv_algorithms.FEWEST_CHANNELS:
            conv.__class__ = SampledConv  # its tensors, and their names, stay as they are
        elif conv.groups > 1:
            conv.__class__ = StridedGroupedConv
    return network


def initialise_convolutions(network: nn.Module) -> None:
    """Initialise all convolutions with weights of standard deviation sqrt(2 / (k^2 * out)) and biases 0.

    Source: He et al., "Delving Deep into Rectifiers", 2015, by fan-out.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            _draw_normal(module.weight, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_narrowly(classifier: nn.Linear) -> None:
    """Initialise a classifier with weights of standard deviation 0.01 and biases 0, as RepDistiller does for VGG and
    MobileNetV2."""
    _draw_normal(classifier.weight, 0.01)
    nn.init.zeros_(classifier.bias)


def _draw_normal(weight: Tensor, deviation: float) -> None:
    if not weight.is_meta:  # it has no values, and torch would import its compiler to draw them
        nn.init.normal_(weight, 0.0, deviation)


def scale_widths(channels: Sequence[int], width: float, multiple: int = 8) -> list[int]:
    """Return channel counts times `width`, rounded to multiples of `multiple` and at least that, for small machines."""
    if width <= 0:
        raise ValueError(f"width must be positive, got {width}")
    return [max(multiple, multiple * round(count * width / multiple)) for count in channels]
