"""Residual networks for small images: everything but the block."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, overload

import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.models.features import FeatureNetwork, Features
from tfkd_fast.models.layers import BatchNorm, Classifier, Conv, average_pool, convolve, norm_relu_pool


class ResidualNetwork(FeatureNetwork):
    """A convolution, stages of blocks at full, half, quarter size and so on, global average pooling, one linear layer.

    Args:
        block: `block(in_channels, out_channels, stride)`, a module whose inputs are (x, active): the sum that the
            previous block ended with, and its activation after the last ReLU. It returns the same pair for itself; with
            activate=False, the second is the input of its last ReLU.
        widths: channels of the first convolution and of each stage.
        blocks: numbers of blocks, one for each stage.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    preactivated = False
    """Whether a block normalises and activates before its convolutions: the stem then ends with the convolution."""

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        widths: Sequence[int],
        blocks: Sequence[int],
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.conv = Conv(in_channels, widths[0])
        self.norm = BatchNorm(widths[0])
        self.stages = nn.ModuleList(
            nn.ModuleList([block(a, b, 1 if i == 0 else 2), *(block(b, b, 1) for _ in range(count - 1))])
            for i, ((a, b), count) in enumerate(zip(pairwise(widths), blocks, strict=True))
        )
        self.classifier = Classifier(widths[-1], num_classes)

    @overload
    def forward(self, images: Tensor, return_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, return_features: Literal[True]) -> tuple[Tensor, Features]: ...
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Return logits (B, num_classes) of images (B, in_channels, H, W) of any size, with all features on request."""
        if not return_features:
            return self.classifier(average_pool(self.run_stages(images)[-1]))
        before, after, sums = [], [], []
        x, active = self._stem(images)
        stem = x if self.preactivated else active
        for stage in self.stages:
            x, inner = run_blocks(stage, x, active, activate=False)
            active = F.relu(inner)
            before.append(inner)
            after.append(active)
            sums.append(x)
        pooled = average_pool(active)
        return self.classifier(pooled), Features(before, after, pooled, stem, sums)

    def run_stages(self, images: Tensor, count: int | None = None) -> list[Tensor]:
        """Run the first `count` stages, or all for None, and return their outputs after ReLU."""
        outputs: list[Tensor] = []
        x, active = self._stem(images)
        for stage in list(self.stages)[:count]:
            x, active = run_blocks(stage, x, active)
            outputs.append(active)
        return outputs

    def _stem(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map of the first convolution, before batch norm and ReLU if it is read, and after."""
        if not self.preactivated:
            active = convolve(self.conv, images, self.norm, relu=True)
            return active, active
        x = convolve(self.conv, images)
        return x, norm_relu_pool(self.norm, x)


def run_blocks(stage: nn.Module, x: Tensor, active: Tensor, *, activate: bool = True) -> tuple[Tensor, Tensor]:
    """Run the blocks of a stage; arguments and results are those of a block, see `ResidualNetwork`."""
    *inner, last = stage.children()
    for block in inner:
        x, active = block(x, active)
    x, active = last(x, active, activate=activate)
    return x, active
