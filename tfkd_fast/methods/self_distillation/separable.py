"""The separable convolution of the layers that some methods add to a student."""

from torch import nn

from tfkd_fast.models.layers import GroupedConv


class SeparableConv(nn.Sequential):
    """A depthwise convolution 3x3, one 1x1, batch norm and ReLU."""

    def __init__(self, channels: int, wanted: int, stride: int = 1) -> None:
        """Maps (B,channels,H,W) become (B,wanted,h,w), by the stride of the depthwise convolution."""
        super().__init__(
            GroupedConv(channels, channels, 3, stride, groups=channels),
            nn.Conv2d(channels, wanted, 1, bias=False),
            nn.BatchNorm2d(wanted),
            nn.ReLU(),
        )
