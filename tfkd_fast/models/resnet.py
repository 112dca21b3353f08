"""ResNets for 32x32 images, as the distillation literature uses them.

Source: He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2, in the form of RepDistiller (Tian
et al., "Contrastive Representation Distillation", 2020): a shortcut that changes the shape is a convolution 1x1 with
batch norm, and the wide networks, x4, begin with twice the channels.
"""

from torch import Tensor, nn

from tfkd_fast.models.layers import BatchNorm, Conv, convolve, initialise_convolutions, scale_widths
from tfkd_fast.models.residual import ResidualNetwork

THIN = (16, 16, 32, 64)
"""Channels of the first convolution and of each stage."""

X4 = (32, 64, 128, 256)
"""Channels of the networks with four times the width."""


class BasicBlock(nn.Module):
    """Two convolutions with batch norm beside a shortcut; ReLU between them and after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, out_channels, stride=stride)
        self.norm1 = BatchNorm(out_channels)
        self.conv2 = Conv(out_channels, out_channels)
        self.norm2 = BatchNorm(out_channels)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                Conv(in_channels, out_channels, kernel=1, stride=stride), BatchNorm(out_channels)
            )

    def forward(self, x: Tensor, active: Tensor, *, activate: bool = True) -> tuple[Tensor, Tensor]:
        """Run the block, see `ResidualNetwork`; only the activation `active` is used, not the sum before it, which is
        not returned where it is activated."""
        inner = convolve(self.conv1, active, self.norm1, relu=True)
        shortcut = active if self.shortcut is None else convolve(self.shortcut[0], active, self.shortcut[1])
        x = convolve(self.conv2, inner, self.norm2, add=shortcut, relu=activate)
        return x, x


class ResNet(ResidualNetwork):
    """A ResNet of depth 6n + 2: n blocks of two convolutions in each stage, one convolution and one linear layer."""

    def __init__(self, depth: int, widths: list[int], num_classes: int, in_channels: int = 3) -> None:
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
        super().__init__(BasicBlock, widths, (depth - 2) // 6, num_classes, in_channels)
        initialise_convolutions(self)  # as RepDistiller does; the linear layer is as torch makes it


def resnet20(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-20: 278,324 parameters for 100 classes; see `layers.scale_widths` for `width`."""
    return ResNet(20, scale_widths(THIN, width), num_classes, in_channels)


def resnet32(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-32: 472,756 parameters for 100 classes."""
    return ResNet(32, scale_widths(THIN, width), num_classes, in_channels)


def resnet56(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-56: 861,620 parameters for 100 classes."""
    return ResNet(56, scale_widths(THIN, width), num_classes, in_channels)


def resnet110(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-110: 1,736,564 parameters for 100 classes."""
    return ResNet(110, scale_widths(THIN, width), num_classes, in_channels)


def resnet8x4(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-8x4: 1,233,540 parameters for 100 classes."""
    return ResNet(8, scale_widths(X4, width), num_classes, in_channels)


def resnet32x4(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-32x4: 7,433,860 parameters for 100 classes."""
    return ResNet(32, scale_widths(X4, width), num_classes, in_channels)
