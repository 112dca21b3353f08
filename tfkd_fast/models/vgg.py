"""VGG networks for 32x32 and 64x64 images, as the distillation literature uses them.

Source: the variants with batch norm of RepDistiller (Tian et al., "Contrastive Representation Distillation", 2020).
"""

import math
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast import ops


class Features(NamedTuple):
    """Inner representations, for methods that distil them."""

    before_relu: list[Tensor]  # one (B, width, H, W) a stage
    after_relu: list[Tensor]
    pooled: Tensor  # (B, width of the last stage)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of padding 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv3x3(x, self.weight, self.bias)


class Stage(nn.Module):
    """Convolutions of one resolution with batch norm; ReLU between them, the last one left to the network."""

    def __init__(self, in_channels: int, widths: list[int]) -> None:
        super().__init__()
        channels = [in_channels, *widths]
        self.conv = nn.ModuleList(Conv3x3(a, b) for a, b in zip(channels, widths, strict=False))
        self.norm = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)

    def forward(self, x: Tensor, *, activate: bool = False, pool: bool = False) -> Tensor:
        """The last batch norm's result; with `activate` after ReLU, and with `pool` after max-pooling, too."""
        last = len(self.norm) - 1
        for i, (conv, norm) in enumerate(zip(self.conv, self.norm, strict=True)):
            x = conv(x)
            if i == last and not activate:
                return norm(x)
            x = norm_relu_pool(norm, x, pool=pool and i == last)
        return x


def norm_relu_pool(norm: nn.Module, x: Tensor, *, pool: bool) -> Tensor:
    """Batch norm, ReLU and, with `pool`, max-pooling 2x2: in training as one operator."""
    assert isinstance(norm, nn.BatchNorm2d)
    batches, mean, var = norm.num_batches_tracked, norm.running_mean, norm.running_var
    if not norm.training or batches is None or mean is None or var is None:
        x = F.relu(norm(x))
        return F.max_pool2d(x, 2) if pool else x
    batches.add_(1)
    momentum = 1.0 / float(batches) if norm.momentum is None else norm.momentum  # None: the average of all batches
    return ops.norm_relu_pool(x, norm.weight, norm.bias, mean, var, momentum=momentum, eps=norm.eps, pool=pool)


class VGG(nn.Module):
    """Five stages at 32, 16, 8, 4 and 4 pixels, global average pool, one linear layer.

    `stages` gives the convolution widths of each stage. A 64x64 input is pooled once more, before the last stage, so
    that the last two stages see 4x4 maps at either size.
    """

    def __init__(self, stages: list[list[int]], num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        inputs = [in_channels, *(widths[-1] for widths in stages)]
        self.stages = nn.ModuleList(Stage(a, widths) for a, widths in zip(inputs, stages, strict=False))
        self.classifier = nn.Linear(inputs[-1], num_classes)
        self._initialise()

    @overload
    def forward(self, images: Tensor, return_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, return_features: Literal[True]) -> tuple[Tensor, Features]: ...
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Logits (B, num_classes) of images (B, in_channels, S, S) with S 32 or 64; with features on request."""
        size = images.shape[-1]
        if images.shape[-2] != size or size not in (32, 64):
            raise ValueError(f"images must be 32x32 or 64x64, got {images.shape[-2]}x{size}")
        pooled_stages = range(4 if size == 64 else 3)
        before, after = [], []
        x = images
        for i, stage in enumerate(self.stages):
            if not return_features:
                x = stage(x, activate=True, pool=i in pooled_stages)
                continue
            before.append(stage(x))
            after.append(F.relu(before[-1]))
            x = F.max_pool2d(after[-1], 2) if i in pooled_stages else after[-1]
        pooled = x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)  # its gradient is channels-last, too
        with torch.autocast(images.device.type, enabled=False):  # bf16 logits would tie, and blur soft targets
            logits = self.classifier(pooled.to(self.classifier.weight.dtype))
        return (logits, Features(before, after, pooled)) if return_features else logits

    def _initialise(self) -> None:
        """Conv weight N(0, sqrt(2 / (k^2 * out))), linear weight N(0, 0.01), every bias 0 (RepDistiller)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def vgg8(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> VGG:
    """VGG-8: 3,965,028 parameters for 100 classes, 3,918,858 for 10.

    `width` multiplies every channel count (rounded to a multiple of 8, at least 8), for small machines.
    """
    if width <= 0:
        raise ValueError(f"width must be positive, got {width}")
    widths = [max(8, 8 * round(channels * width / 8)) for channels in (64, 128, 256, 512, 512)]
    return VGG([[channels] for channels in widths], num_classes, in_channels)
