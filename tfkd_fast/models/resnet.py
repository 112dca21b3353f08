"""ResNets for 32x32 images, as the distillation literature uses them.

Source: He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2, in the form of RepDistiller (Tian
et al., "Contrastive Representation Distillation", 2020): a shortcut that changes the shape is a convolution 1x1 with
batch norm, and the wide networks, x4, begin with twice the channels. The networks of four stages are those of the
paper's section 4.1 but for their first layer.
"""

from torch import Tensor, nn

from tfkd_fast.models.layers import BatchNorm, Conv, convolve, initialise_convolutions, scale_widths
from tfkd_fast.models.residual import ResidualNetwork

THIN = (16, 16, 32, 64)
"""Channels of the first convolution and of each stage."""

DEEP = (64, 64, 128, 256, 512)
"""Channels of the networks with four stages; of bottlenecks those inside."""

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
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor, active: Tensor, *, activate: bool = True) -> tuple[Tensor, Tensor]:
        """Run the block, see `ResidualNetwork`; only the activation `active` is used, not the sum before it, which is
        not returned where it is activated."""
        inner = convolve(self.conv1, active, self.norm1, relu=True)
        shortcut = active if self.shortcut is None else convolve(self.shortcut[0], active, self.shortcut[1])
        x = convolve(self.conv2, inner, self.norm2, add=shortcut, relu=activate)
        return x, x


class BottleneckBlock(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1 with batch norm beside a shortcut, the first two a quarter as wide; ReLU between
    them and after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = out_channels // 4
        self.conv1 = Conv(in_channels, inner, kernel=1)
        self.norm1 = BatchNorm(inner)
        self.conv2 = Conv(inner, inner, stride=stride)
        self.norm2 = BatchNorm(inner)
        self.conv3 = Conv(inner, out_channels, kernel=1)
        self.norm3 = BatchNorm(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor, active: Tensor, *, activate: bool = True) -> tuple[Tensor, Tensor]:
        """Run the block, as `BasicBlock`."""
        inner = convolve(self.conv1, active, self.norm1, relu=True)
        inner = convolve(self.conv2, inner, self.norm2, relu=True)
        shortcut = active if self.shortcut is None else convolve(self.shortcut[0], active, self.shortcut[1])
        x = convolve(self.conv3, inner, self.norm3, add=shortcut, relu=activate)
        return x, x


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """A convolution 1x1 with batch norm where a block changes the shape of its maps."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(Conv(in_channels, out_channels, kernel=1, stride=stride), BatchNorm(out_channels))


class ResNet(ResidualNetwork):
    """A ResNet of depth 6n + 2: n blocks of two convolutions in each stage, one convolution and one linear layer."""

    def __init__(self, depth: int, widths: list[int], num_classes: int, in_channels: int = 3) -> None:
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
        super().__init__(BasicBlock, widths, [(depth - 2) // 6] * 3, num_classes, in_channels)
        initialise_convolutions(self)  # as RepDistiller does; the linear layer is as torch makes it


class DeepResNet(ResidualNetwork):
    """A ResNet of four stages, as for ImageNet, whose first convolution is 3x3 without a stride or pooling.

    Args:
        block: `BasicBlock` or `BottleneckBlock`.
        widths: channels of the first convolution and of each stage.
        blocks: numbers of blocks, one for each stage.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(
        self,
        block: type[BasicBlock | BottleneckBlock],
        widths: list[int],
        blocks: list[int],
        num_classes: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__(block, widths, blocks, num_classes, in_channels)
        initialise_convolutions(self)  # as RepDistiller does; the linear layer is as torch makes it


def resnet8(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-8: 83,892 parameters for 100 classes; see `layers.scale_widths` for `width`."""
    return ResNet(8, scale_widths(THIN, width), num_classes, in_channels)


def resnet14(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-14: 181,108 parameters for 100 classes."""
    return ResNet(14, scale_widths(THIN, width), num_classes, in_channels)


def resnet20(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-20: 278,324 parameters for 100 classes."""
    return ResNet(20, scale_widths(THIN, width), num_classes, in_channels)


def resnet32(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-32: 472,756 parameters for 100 classes."""
    return ResNet(32, scale_widths(THIN, width), num_classes, in_channels)


def resnet44(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-44: 667,188 parameters for 100 classes."""
    return ResNet(44, scale_widths(THIN, width), num_classes, in_channels)


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


def resnet18(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> DeepResNet:
    """ResNet-18 for small images: 11,220,132 parameters for 100 classes."""
    return DeepResNet(BasicBlock, scale_widths(DEEP, width), [2, 2, 2, 2], num_classes, in_channels)


def resnet34(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> DeepResNet:
    """ResNet-34 for small images: 21,328,292 parameters for 100 classes."""
    return DeepResNet(BasicBlock, scale_widths(DEEP, width), [3, 4, 6, 3], num_classes, in_channels)


def resnet50(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> DeepResNet:
    """ResNet-50 for small images: 23,705,252 parameters for 100 classes."""
    first, *inner = scale_widths(DEEP, width)
    widths = [first, *(4 * channels for channels in inner)]
    return DeepResNet(BottleneckBlock, widths, [3, 4, 6, 3], num_classes, in_channels)
