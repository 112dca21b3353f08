"""Wide residual networks for 32x32 images, as the distillation literature uses them.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", 2016, without dropout, in the form of RepDistiller (Tian et
al., "Contrastive Representation Distillation", 2020): a shortcut that changes the shape is a convolution 1x1 of what
the block's first convolution sees, after batch norm and ReLU; any other passes the sum on as it is.
"""

from torch import Tensor, nn

from tfkd_fast.models.layers import BatchNorm, Conv, convolve, initialise_convolutions, norm_relu_pool, scale_widths
from tfkd_fast.models.residual import ResidualNetwork


class WideBlock(nn.Module):
    """Two convolutions beside a shortcut, then the batch norm and ReLU that the literature counts to the next block.

    So a stage ends with the ReLU of its features. The tensors and their order are those of the literature.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, out_channels, stride=stride)
        self.norm1 = BatchNorm(out_channels)
        self.conv2 = Conv(out_channels, out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = Conv(in_channels, out_channels, kernel=1, stride=stride) if changes else None
        self.norm2 = BatchNorm(out_channels)

    def forward(self, x: Tensor, active: Tensor, *, activate: bool = True) -> tuple[Tensor, Tensor]:
        """Run the block, see `ResidualNetwork`."""
        inner = convolve(self.conv1, active, self.norm1, relu=True)
        x = convolve(self.conv2, inner, add=x if self.shortcut is None else convolve(self.shortcut, active))
        return x, norm_relu_pool(self.norm2, x) if activate else self.norm2(x)


class WideResNet(ResidualNetwork):
    """A wide residual network of depth 6n + 4: n blocks in each stage, the first convolution, three 1x1 shortcuts."""

    preactivated = True

    def __init__(self, depth: int, widths: list[int], num_classes: int, in_channels: int = 3) -> None:
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4 with n >= 1, got {depth}")
        super().__init__(WideBlock, widths, [(depth - 4) // 6] * 3, num_classes, in_channels)
        initialise_convolutions(self)  # as RepDistiller does; the linear layer's weight is as torch makes it
        nn.init.zeros_(self.classifier.bias)


THIN = (16, 16, 32, 64)
"""Channels of the first convolution and of each stage."""

X2 = (16, 32, 64, 128)
"""Channels of the networks with twice the width."""


def wrn_16_1(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> WideResNet:
    """WRN-16-1: 180,916 parameters for 100 classes; see `layers.scale_widths` for `width`."""
    return WideResNet(16, scale_widths(THIN, width), num_classes, in_channels)


def wrn_16_2(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> WideResNet:
    """WRN-16-2: 703,284 parameters for 100 classes."""
    return WideResNet(16, scale_widths(X2, width), num_classes, in_channels)


def wrn_40_1(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> WideResNet:
    """WRN-40-1: 569,780 parameters for 100 classes."""
    return WideResNet(40, scale_widths(THIN, width), num_classes, in_channels)


def wrn_40_2(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> WideResNet:
    """WRN-40-2: 2,255,156 parameters for 100 classes."""
    return WideResNet(40, scale_widths(X2, width), num_classes, in_channels)
