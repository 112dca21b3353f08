"""ShuffleNets for small images, as the distillation literature uses them.

Source: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", 2018, and Ma
et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018, in the form of RepDistiller
(Tian et al., "Contrastive Representation Distillation", 2020): the first convolution is 1x1 and nothing is pooled after
it.
"""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.models.features import FeatureNetwork, Features
from tfkd_fast.models.layers import BatchNorm, Classifier, Conv, GroupedConv, average_pool, convolve, scale_widths

STEM = 24
"""Channels of the first convolution."""

GROUPS = 3
"""Groups of the convolutions 1x1 of ShuffleNetV1."""


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Give every group of the channels of x (B,C,H,W) a part of each group; the result is channels-last."""
    return x.permute(0, 2, 3, 1).unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2).permute(0, 3, 1, 2)


class BlockV1(nn.Module):
    """Grouped convolutions 1x1 around a depthwise one 3x3, a quarter as wide inside; beside a shortcut, which with a
    stride is average-pooled and joined to the channels instead of added."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        """`out_channels` with those of the shortcut where it is joined; `groups` of the first convolution."""
        super().__init__()
        self.joins, self.groups = stride != 1, groups
        own = out_channels - in_channels if self.joins else out_channels
        inner = own // 4
        self.conv1 = GroupedConv(in_channels, inner, 1, groups=groups)
        self.norm1 = BatchNorm(inner)
        self.conv2 = GroupedConv(inner, inner, 3, stride, groups=inner)
        self.norm2 = BatchNorm(inner)
        self.conv3 = GroupedConv(inner, own, 1, groups=GROUPS)
        self.norm3 = BatchNorm(own)

    def forward(self, x: Tensor, *, activate: bool = True) -> Tensor:
        """Return what the last ReLU gives, or with activate=False what it takes."""
        inner = shuffle(convolve(self.conv1, x, self.norm1, relu=True), self.groups)
        inner = convolve(self.conv2, inner, self.norm2, relu=True)
        if not self.joins:
            return convolve(self.conv3, inner, self.norm3, add=x, relu=activate)
        joined = torch.cat([convolve(self.conv3, inner, self.norm3), F.avg_pool2d(x, 3, 2, 1)], 1)
        return F.relu(joined) if activate else joined


class KeepingBlockV2(nn.Module):
    """Half of the channels as they are; the others through convolutions 1x1, depthwise 3x3 and 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = Conv(half, half, kernel=1)
        self.norm1 = BatchNorm(half)
        self.conv2 = GroupedConv(half, half, 3, groups=half)
        self.norm2 = BatchNorm(half)
        self.conv3 = Conv(half, half, kernel=1)
        self.norm3 = BatchNorm(half)

    def forward(self, x: Tensor, *, activate: bool = True) -> Tensor:
        """Return the shuffled channels; with activate=False those that were computed are what the last ReLU takes."""
        left, inner = x.chunk(2, 1)
        inner = convolve(self.conv1, inner, self.norm1, relu=True)
        inner = convolve(self.conv2, inner, self.norm2)
        return shuffle(torch.cat([left, convolve(self.conv3, inner, self.norm3, relu=activate)], 1), 2)


class HalvingBlockV2(nn.Module):
    """Half the size: all channels through a depthwise convolution 3x3 and one 1x1, and beside that through convolutions
    1x1, depthwise 3x3 and 1x1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = GroupedConv(in_channels, in_channels, 3, 2, groups=in_channels)
        self.norm1 = BatchNorm(in_channels)
        self.conv2 = Conv(in_channels, half, kernel=1)
        self.norm2 = BatchNorm(half)
        self.conv3 = Conv(in_channels, half, kernel=1)
        self.norm3 = BatchNorm(half)
        self.conv4 = GroupedConv(half, half, 3, 2, groups=half)
        self.norm4 = BatchNorm(half)
        self.conv5 = Conv(half, half, kernel=1)
        self.norm5 = BatchNorm(half)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shuffled channels after ReLU."""
        left = convolve(self.conv2, convolve(self.conv1, x, self.norm1), self.norm2, relu=True)
        right = convolve(self.conv3, x, self.norm3, relu=True)
        right = convolve(self.conv5, convolve(self.conv4, right, self.norm4), self.norm5, relu=True)
        return shuffle(torch.cat([left, right], 1), 2)


class ShuffleNet(FeatureNetwork):
    """A ShuffleNet: of images of 32x32 pixels its stages are 16, 8 and 4 pixels wide.

    Args:
        stem: channels of the first convolution.
        stages: the blocks of each stage; all but the first one of a stage take `activate`.
        channels: channels of the last stage.
        top: channels of one more convolution 1x1, with batch norm and ReLU, that ends the last stage; None for none.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(
        self,
        stem: int,
        stages: list[list[nn.Module]],
        channels: int,
        top: int | None,
        num_classes: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv = Conv(in_channels, stem, kernel=1)
        self.norm = BatchNorm(stem)
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.top_conv = None if top is None else Conv(channels, top, kernel=1)
        self.top_norm = None if top is None else BatchNorm(top)
        self.classifier = Classifier(top or channels, num_classes)

    @overload
    def forward(self, images: Tensor, return_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, return_features: Literal[True]) -> tuple[Tensor, Features]: ...
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Return logits (B, num_classes) of images (B, in_channels, H, W) of any size, with all features on request."""
        x = stem = convolve(self.conv, images, self.norm, relu=True)
        before, after, ends = [], [], []
        for stage in self.stages:
            *inner, last = stage.children()
            for block in inner:
                x = block(x)
            if return_features:
                before.append(last(x, activate=False))
                x = F.relu(before[-1])
                after.append(x)
            else:
                x = last(x)
            ends.append(x)
        if self.top_conv is None:
            ends = before
        elif return_features:
            before[-1] = convolve(self.top_conv, x, self.top_norm)
            x = after[-1] = F.relu(before[-1])
        else:
            x = convolve(self.top_conv, x, self.top_norm, relu=True)
        pooled = average_pool(x)
        logits = self.classifier(pooled)
        return (logits, Features(before, after, pooled, stem, ends)) if return_features else logits


def shufflenetv1(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ShuffleNet:
    """ShuffleNetV1 with 3 groups: 949,258 parameters for 100 classes; a narrower one has multiples of 12 channels."""
    stem, first = scale_widths((STEM, 240), width, 12)
    first = max(2 * stem, first)  # more than those of the shortcut, which are joined to its own
    stages: list[list[nn.Module]] = []
    before = stem
    for channels, count in ((first, 4), (2 * first, 8), (4 * first, 4)):
        blocks: list[nn.Module] = [BlockV1(before, channels, 2, GROUPS if stages else 1)]
        blocks += [BlockV1(channels, channels, 1, GROUPS) for _ in range(count - 1)]
        stages.append(blocks)
        before = channels
    return ShuffleNet(stem, stages, before, None, num_classes, in_channels)


def shufflenetv2(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ShuffleNet:
    """ShuffleNetV2: 1,355,528 parameters for 100 classes."""
    stem, first, top = scale_widths((STEM, 116, 1024), width, 4)
    stages: list[list[nn.Module]] = []
    before = stem
    for channels, count in ((first, 4), (2 * first, 8), (4 * first, 4)):
        blocks: list[nn.Module] = [HalvingBlockV2(before, channels)]
        blocks += [KeepingBlockV2(channels) for _ in range(count - 1)]
        stages.append(blocks)
        before = channels
    return ShuffleNet(stem, stages, before, top, num_classes, in_channels)
