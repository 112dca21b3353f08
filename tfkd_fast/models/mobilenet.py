"""MobileNetV2 for small images, as the distillation literature uses it.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, in the form of RepDistiller
(Tian et al., "Contrastive Representation Distillation", 2020), which is that of Jin et al., "Knowledge Distillation via
Route Constrained Optimization", 2019: half the width, ReLU for ReLU6, and the first blocks of 24 channels, which are 12
then, without a stride.
"""

from itertools import pairwise
from typing import Literal, overload

from torch import Tensor, nn

from tfkd_fast.models.features import FeatureNetwork, Features
from tfkd_fast.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    GroupedConv,
    average_pool,
    convolve,
    initialise_convolutions,
    initialise_narrowly,
    scale_widths,
)

EXPANSION = 6
"""How many times wider a block is inside, but for the very first one."""

STAGES = (((8, 1, 1), (12, 2, 1)), ((16, 3, 2),), ((32, 4, 2), (48, 3, 1)), ((80, 3, 2), (160, 1, 1)))
"""Channels, number of blocks and first stride of the runs of blocks of each stage, at half the width of the paper."""

STEM, TOP = 16, 1280
"""Channels of the first and of the last convolution; the last one has the paper's width in the literature, too."""


class InvertedBlock(nn.Module):
    """A convolution 1x1 that widens, a depthwise one 3x3, and one 1x1 that narrows without a ReLU; beside a shortcut
    where that keeps the shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.conv1 = Conv(in_channels, inner, kernel=1)
        self.norm1 = BatchNorm(inner)
        self.conv2 = GroupedConv(inner, inner, 3, stride, groups=inner)
        self.norm2 = BatchNorm(inner)
        self.conv3 = Conv(inner, out_channels, kernel=1)
        self.norm3 = BatchNorm(out_channels)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, or the map without a shortcut."""
        inner = convolve(self.conv1, x, self.norm1, relu=True)
        inner = convolve(self.conv2, inner, self.norm2, relu=True)
        return convolve(self.conv3, inner, self.norm3, add=x if self.has_shortcut else None)


class MobileNetV2(FeatureNetwork):
    """MobileNetV2: of images of 32x32 pixels its stages are 16, 8, 4 and 2 pixels wide.

    The last stage ends with the convolution 1x1 before the global average pooling, with batch norm and ReLU; the others
    end without a ReLU.

    Args:
        width: factor that multiplies the channels of every layer, see `layers.scale_widths`.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, width: float, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        before, top = scale_widths((STEM, TOP), width, 4)
        self.conv = Conv(in_channels, before, stride=2)
        self.norm = BatchNorm(before)
        self.stages = nn.ModuleList()
        for stage, runs in enumerate(STAGES):
            blocks = nn.ModuleList()
            for run, (full_channels, count, stride) in enumerate(runs):
                (channels,) = scale_widths((full_channels,), width, 4)
                for number, (a, b) in enumerate(pairwise([before, *[channels] * count])):
                    expansion = 1 if stage == run == 0 else EXPANSION
                    blocks.append(InvertedBlock(a, b, stride if number == 0 else 1, expansion))
                before = channels
            self.stages.append(blocks)
        self.top_conv = Conv(before, top, kernel=1)
        self.top_norm = BatchNorm(top)
        self.classifier = Classifier(top, num_classes)
        initialise_convolutions(self)
        initialise_narrowly(self.classifier)

    @overload
    def forward(self, images: Tensor, return_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, return_features: Literal[True]) -> tuple[Tensor, Features]: ...
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Return logits (B, num_classes) of images (B, in_channels, H, W) of any size, with all features on request."""
        x = stem = convolve(self.conv, images, self.norm, relu=True)
        maps = []
        for stage in self.stages:
            for block in stage.children():
                x = block(x)
            maps.append(x)
        if not return_features:
            return self.classifier(average_pool(convolve(self.top_conv, x, self.top_norm, relu=True)))
        before = convolve(self.top_conv, x, self.top_norm)
        after = before.relu()
        pooled = average_pool(after)
        return self.classifier(pooled), Features([*maps[:-1], before], [*maps[:-1], after], pooled, stem, maps)


def mobilenetv2_half(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> MobileNetV2:
    """MobileNetV2 of half the width: 812,836 parameters for 100 classes."""
    return MobileNetV2(width, num_classes, in_channels)
