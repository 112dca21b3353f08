"""What residual networks for small images have in common: all but the block."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, overload

import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.models.layers import BatchNorm, Classifier, Conv, Features, average_pool, norm_relu_pool


class ResidualNetwork(nn.Module):
    """A convolution, stages of blocks at full, half and quarter size, global average pool, one linear layer.

    Args:
        block: `block(in_channels, out_channels, stride)`, a module that takes (x, active): the sum that the block
            before it ended with, and what became of it by the last ReLU. It gives both of its own, or with
            activate=False in place of the second what its last ReLU would take.
        widths: of the first convolution and of each stage.
        blocks: of each stage.
    """

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        widths: Sequence[int],
        blocks: int,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.conv = Conv(in_channels, widths[0])
        self.norm = BatchNorm(widths[0])
        self.stages = nn.ModuleList(
            nn.ModuleList([block(a, b, 1 if i == 0 else 2), *(block(b, b, 1) for _ in range(blocks - 1))])
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.classifier = Classifier(widths[-1], num_classes)

    @overload
    def forward(self, images: Tensor, return_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, return_features: Literal[True]) -> tuple[Tensor, Features]: ...
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Logits (B, num_classes) of images (B, in_channels, H, W) of any size; with features on request."""
        before: list[Tensor] = []
        after = self.run_stages(images, before_relu=before if return_features else None)
        pooled = average_pool(after[-1])
        logits = self.classifier(pooled)
        return (logits, Features(before, after, pooled)) if return_features else logits

    def run_stages(
        self, images: Tensor, count: int | None = None, *, before_relu: list[Tensor] | None = None
    ) -> list[Tensor]:
        """What each of the first `count` stages (None: of all) gives to the next. The others are not run.

        What the last ReLU of each takes is appended to `before_relu`, where it is wanted.
        """
        given: list[Tensor] = []
        x = self.conv(images)
        active = norm_relu_pool(self.norm, x)
        for stage in list(self.stages)[:count]:
            *inner, last = stage.children()
            for block in inner:
                x, active = block(x, active)
            x, active = last(x, active, activate=before_relu is None)
            if before_relu is not None:
                before_relu.append(active)
                active = F.relu(active)
            given.append(active)
        return given
