"""VGG networks for small images, as the distillation literature uses them.

Source: the variants with batch norm of RepDistiller (Tian et al., "Contrastive Representation Distillation", 2020).
"""

from typing import Literal, overload

import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.models.features import FeatureNetwork, Features
from tfkd_fast.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    average_pool,
    convolve,
    initialise_convolutions,
    initialise_narrowly,
    scale_widths,
)

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of each stage."""


class Stage(nn.Module):
    """Convolutions of one resolution with batch norm and ReLU between them; the network applies the last ReLU."""

    def __init__(self, in_channels: int, widths: list[int]) -> None:
        super().__init__()
        channels = [in_channels, *widths]
        self.conv = nn.ModuleList(Conv(a, b, bias=True) for a, b in zip(channels, widths, strict=False))
        self.norm = nn.ModuleList(BatchNorm(width) for width in widths)

    def forward(self, x: Tensor, *, activate: bool = False, pool: bool = False) -> Tensor:
        """Return the result of the last batch norm, after ReLU with `activate`, and after max-pooling with `pool`."""
        last = len(self.norm) - 1
        for i, (conv, norm) in enumerate(zip(self.conv, self.norm, strict=True)):
            x = convolve(conv, x, norm, relu=activate or i < last, pool=pool and i == last)
        return x


class VGG(FeatureNetwork):
    """A VGG network: five stages at 32, 16, 8, 4 and 4 pixels, global average pooling, and one linear layer.

    Images of 64x64 pixels and more are pooled once more, before the last stage.

    Args:
        stages: channels of the convolutions of each stage.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, stages: list[list[int]], num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        inputs = [in_channels, *(widths[-1] for widths in stages)]
        self.stages = nn.ModuleList(Stage(a, widths) for a, widths in zip(inputs, stages, strict=False))
        self.classifier = Classifier(inputs[-1], num_classes)
        initialise_convolutions(self)
        initialise_narrowly(self.classifier)

    @overload
    def forward(self, images: Tensor, return_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, return_features: Literal[True]) -> tuple[Tensor, Features]: ...
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Return logits (B, num_classes) of images (B, in_channels, H, W) from 8x8 on, with all features on request."""
        if not return_features:
            return self.classifier(average_pool(self.run_stages(images)[-1]))
        before, after = [], []
        x, pooled_stages = images, self._pooled_stages(images)
        for i, stage in enumerate(self.stages):
            before.append(stage(x))
            after.append(F.relu(before[-1]))
            x = F.max_pool2d(after[-1], 2) if i in pooled_stages else after[-1]
        pooled = average_pool(x)
        return self.classifier(pooled), Features(before, after, pooled)

    def run_stages(self, images: Tensor, count: int | None = None) -> list[Tensor]:
        """Run the first `count` stages, or all for None, and return their outputs after ReLU and pooling."""
        outputs: list[Tensor] = []
        x, pooled_stages = images, self._pooled_stages(images)
        for i, stage in enumerate(list(self.stages)[:count]):
            x = stage(x, activate=True, pool=i in pooled_stages)
            outputs.append(x)
        return outputs

    def _pooled_stages(self, images: Tensor) -> range:
        return range(4 if min(images.shape[-2:]) >= 64 else 3)


def vgg8(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> VGG:
    """VGG-8: 3,965,028 parameters for 100 classes, 3,918,858 for 10; see `layers.scale_widths` for `width`."""
    return _vgg((1, 1, 1, 1, 1), num_classes, in_channels, width)


def vgg11(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> VGG:
    """VGG-11: 9,277,284 parameters for 100 classes."""
    return _vgg((1, 1, 2, 2, 2), num_classes, in_channels, width)


def vgg13(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> VGG:
    """VGG-13: 9,462,180 parameters for 100 classes."""
    return _vgg((2, 2, 2, 2, 2), num_classes, in_channels, width)


def vgg16(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> VGG:
    """VGG-16: 14,774,436 parameters for 100 classes."""
    return _vgg((2, 2, 3, 3, 3), num_classes, in_channels, width)


def vgg19(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> VGG:
    """VGG-19: 20,086,692 parameters for 100 classes."""
    return _vgg((2, 2, 4, 4, 4), num_classes, in_channels, width)


def _vgg(convolutions: tuple[int, ...], num_classes: int, in_channels: int, width: float) -> VGG:
    """The network with so many convolutions in each stage."""
    stages = zip(scale_widths(WIDTHS, width), convolutions, strict=True)
    return VGG([[channels] * count for channels, count in stages], num_classes, in_channels)
