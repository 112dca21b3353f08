"""What the networks are made of.

The layers bring weights and images to one dtype by themselves: autocast leaves tensors that torch.func maps as they
are. The first convolution takes the images to the dtype of the region, by its operator.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast import ops
from tfkd_fast.ops import fused


class Features(NamedTuple):
    """Inner representations, for methods that distil them.

    The maps are what the last ReLU of a stage takes and gives, before pooling. Stages of different networks go together
    by the size of their maps: of 32x32 images those of a VGG are 32, 16, 8, 4 and 4 pixels wide, those of a residual
    network 32, 16 and 8, so that the first three of each are pairs; of images twice that size, too.
    """

    before_relu: list[Tensor]  # one (B, width, H, W) a stage
    after_relu: list[Tensor]
    pooled: Tensor  # (B, width of the last stage)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """Each of them changed."""
        return Features(list(map(change, self.before_relu)), list(map(change, self.after_relu)), change(self.pooled))


def logits_and_features(network: nn.Module, features: bool, images: Tensor) -> tuple[Tensor, Features | None]:
    """What a network makes of images (B,C,H,W), with its features if they are wanted."""
    if not features:
        return network(images), None
    logits, inner = network(images, return_features=True)
    return logits, inner


class FeatureShapes(NamedTuple):
    """Of the features of one image."""

    maps: tuple[tuple[int, int, int], ...]  # width, H, W of each stage
    pooled: int


def feature_shapes(network: nn.Module, image_shape: tuple[int, int, int]) -> FeatureShapes:
    """Of a network that gives features, for images (channels, height, width)."""
    was_training, parameter = network.training, next(network.parameters())
    with torch.no_grad():
        images = torch.zeros(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
        _, features = network.eval()(images, return_features=True)
    network.train(was_training)
    maps = tuple((int(map.shape[1]), int(map.shape[2]), int(map.shape[3])) for map in features.before_relu)
    return FeatureShapes(maps, int(features.pooled.shape[1]))


class Conv(nn.Conv2d):
    """A convolution whose padding keeps the size of the image, but for the stride."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, *, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (3, 3) and self.stride == (1, 1):
            return ops.conv3x3(x, self.weight, self.bias)
        return self._conv_forward(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class BatchNorm(nn.BatchNorm2d):
    """Batch norm, also of bfloat16 images that torch.func maps."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype or not fused.inside_torch_func():
            return super().forward(x)
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)  # it maps no batch norm of two dtypes


def norm_relu_pool(norm: nn.Module, x: Tensor, *, pool: bool = False) -> Tensor:
    """Batch norm, ReLU and, with `pool`, max-pooling 2x2: in training as one operator."""
    assert isinstance(norm, nn.BatchNorm2d)
    batches, mean, var = norm.num_batches_tracked, norm.running_mean, norm.running_var
    if not norm.training or batches is None or mean is None or var is None:
        x = F.relu(norm(x))
        return F.max_pool2d(x, 2) if pool else x
    batches.add_(1)
    momentum = 1.0 / float(batches) if norm.momentum is None else norm.momentum  # None: the average of all batches
    return ops.norm_relu_pool(x, norm.weight, norm.bias, mean, var, momentum=momentum, eps=norm.eps, pool=pool)


def average_pool(x: Tensor) -> Tensor:
    """The mean of (B,C,H,W) over all positions, (B,C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)  # its gradient is channels-last, too


def average_pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,C,H,W) to (B,C,*size). Where the sizes divide, by the pooling whose gradient is deterministic on CUDA."""
    height, width = maps.shape[-2:]
    if height % size[0] or width % size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.avg_pool2d(maps, (height // size[0], width // size[1]))


class Classifier(nn.Linear):
    """The linear layer that gives the logits, in the dtype of its weight whatever the autocast region."""

    def forward(self, pooled: Tensor) -> Tensor:
        with torch.autocast(pooled.device.type, enabled=False):  # bf16 logits would tie, and blur soft targets
            return super().forward(pooled.to(self.weight.dtype))


def initialise_convolutions(network: nn.Module) -> None:
    """Weights N(0, sqrt(2 / (k^2 * out))), biases 0: He et al., "Delving Deep into Rectifiers", 2015, by fan-out."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def scale_widths(channels: Sequence[int], width: float) -> list[int]:
    """Channel counts times `width`, rounded to a multiple of 8, at least 8: for small machines."""
    if width <= 0:
        raise ValueError(f"width must be positive, got {width}")
    return [max(8, 8 * round(count * width / 8)) for count in channels]
