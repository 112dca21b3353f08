"""The networks on offer as one writes them with torch's own layers, to measure against: none of this package's runs.

A plain network has the layers, sizes and weights of the network that it is made from, and computes the same.
"""

import copy
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

from tfkd_fast.models import MODELS, VGG, FeatureNetwork, ResidualNetwork
from tfkd_fast.models.layers import Classifier, SampledConv
from tfkd_fast.models.resnet import BasicBlock, BottleneckBlock
from tfkd_fast.models.wide_resnet import WideBlock

WRITTEN_OUT = tuple(name for name in MODELS if not name.startswith(("resnet50", "mobilenet", "shufflenet")))
"""The networks on offer that are written out here."""


def plain_network(network: nn.Module) -> nn.Module:
    """Build the network in torch's layers, with copies of the weights and statistics.

    Args:
        network: a network on offer, for images of 32x32 pixels, or one of others, of which this is a copy.

    Raises:
        TypeError: the network is of no family that is written out here.
    """
    if not isinstance(network, FeatureNetwork):
        return _without_our_layers(copy.deepcopy(network))
    if isinstance(network, VGG):
        return _vgg(network)
    if isinstance(network, ResidualNetwork) and not any(
        isinstance(part, BottleneckBlock) for part in network.modules()
    ):
        return _residual_network(network)
    raise TypeError(f"there is no plain network for {type(network).__name__}")


class PlainBasicBlock(nn.Module):
    """A block of a ResNet: He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(block.conv1), _norm(block.norm1)
        self.conv2, self.norm2 = _conv(block.conv2), _norm(block.norm2)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if isinstance(block.shortcut, nn.Sequential):
            conv, norm = block.shortcut
            self.shortcut = nn.Sequential(_conv(conv), _norm(norm))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of the sum."""
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class PlainWideBlock(nn.Module):
    """A block of a wide residual network: Zagoruyko and Komodakis, "Wide Residual Networks", 2016.

    Its first batch norm is the one that `WideBlock` counts to the block before.
    """

    def __init__(self, norm: nn.Module, block: WideBlock) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(norm), _conv(block.conv1)
        self.norm2, self.conv2 = _norm(block.norm1), _conv(block.conv2)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None if block.shortcut is None else _conv(block.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, which the next block normalises."""
        active = self.relu(self.norm1(x))
        out = self.conv2(self.relu(self.norm2(self.conv1(active))))
        out += x if self.shortcut is None else self.shortcut(active)
        return out


OURS: dict[type[nn.Module], type[nn.Module]] = {Classifier: nn.Linear, SampledConv: nn.Conv2d}
"""The layers that a network of others gets here, and those of torch that they stand for."""


def _without_our_layers(network: nn.Module) -> nn.Module:
    for module in network.modules():
        module.__class__ = OURS.get(type(module), type(module))
    return network


def _vgg(network: VGG) -> nn.Module:
    layers: list[nn.Module] = []
    for number, stage in enumerate(network.stages):
        for conv, norm in zip(_modules(stage.conv), _modules(stage.norm), strict=True):
            layers += [_conv(conv), _norm(norm), nn.ReLU(inplace=True)]
        if number < 3:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *_head(network.classifier))


def _residual_network(network: ResidualNetwork) -> nn.Module:
    blocks = [block for stage in network.stages for block in _modules(stage)]
    relu = nn.ReLU(inplace=True)
    if not network.preactivated:
        plain = [PlainBasicBlock(cast(BasicBlock, block)) for block in blocks]
        return nn.Sequential(_conv(network.conv), _norm(network.norm), relu, *plain, *_head(network.classifier))
    norms = [network.norm, *(cast(WideBlock, block).norm2 for block in blocks)]
    wide = [PlainWideBlock(norm, cast(WideBlock, block)) for norm, block in zip(norms, blocks, strict=False)]
    return nn.Sequential(_conv(network.conv), *wide, _norm(norms[-1]), relu, *_head(network.classifier))


def _head(classifier: nn.Linear) -> list[nn.Module]:
    linear = nn.Linear(classifier.in_features, classifier.out_features, **_like(classifier))
    linear.load_state_dict(classifier.state_dict())
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear]


def _conv(conv: nn.Module) -> nn.Conv2d:
    assert isinstance(conv, nn.Conv2d)
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    assert isinstance(padding, int)
    sizes = conv.in_channels, conv.out_channels, kernel, stride, padding
    plain = nn.Conv2d(*sizes, bias=conv.bias is not None, **_like(conv))
    plain.load_state_dict(conv.state_dict())
    return plain


def _norm(norm: nn.Module) -> nn.BatchNorm2d:
    assert isinstance(norm, nn.BatchNorm2d)
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, **_like(norm))
    plain.load_state_dict(norm.state_dict())
    return plain


def _like(layer: nn.Conv2d | nn.BatchNorm2d | nn.Linear) -> dict[str, Any]:
    return {"device": layer.weight.device, "dtype": layer.weight.dtype}


def _modules(modules: nn.Module | Tensor) -> Iterable[nn.Module]:
    assert isinstance(modules, nn.ModuleList)
    return modules
