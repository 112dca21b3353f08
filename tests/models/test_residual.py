"""Residual networks are those of the literature: layers, gradients, initialisation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.models import ResNet, WideResNet


class PlainBlock(nn.Module):
    """Of a ResNet: ReLU after the sum."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(b)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(b)
        if stride == 2 or a != b:
            self.down = nn.Conv2d(a, b, 1, stride, bias=False)
            self.down_bn = nn.BatchNorm2d(b)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.down_bn(self.down(x)) if hasattr(self, "down") else x
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return F.relu(x + shortcut)


class PlainWideBlock(nn.Module):
    """Of a wide residual network as the literature divides it: batch norm and ReLU first."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(a)
        self.conv1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(b)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        if stride == 2 or a != b:
            self.down = nn.Conv2d(a, b, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = self.down(y) if hasattr(self, "down") else x
        y = F.relu(self.bn2(self.conv1(y)))
        return shortcut + self.conv2(y)


def plain_stages(block: type[nn.Module], widths: list[int], others: int) -> list[nn.Module]:
    first, a, b, c = widths
    return [
        block(first, a, 1), *(block(a, a, 1) for _ in range(others)),
        block(a, b, 2), *(block(b, b, 1) for _ in range(others)),
        block(b, c, 2), *(block(c, c, 1) for _ in range(others)),
    ]  # fmt: skip


def plain(kind: type[nn.Module], depth: int, widths: list[int]) -> nn.Sequential:
    """The network for 32x32 images and 10 classes in torch's own modules, as independent truth."""
    stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
    top = [nn.AvgPool2d(8), nn.Flatten(), nn.Linear(widths[-1], 10)]
    if kind is ResNet:
        stages = plain_stages(PlainBlock, widths, {8: 0, 14: 1}[depth])
        return nn.Sequential(stem, nn.BatchNorm2d(widths[0]), nn.ReLU(), *stages, *top)
    stages = plain_stages(PlainWideBlock, widths, {10: 0, 16: 1}[depth])
    return nn.Sequential(stem, *stages, nn.BatchNorm2d(widths[-1]), nn.ReLU(), *top)


@pytest.mark.parametrize(
    ("kind", "depth", "widths"),
    [  # of each, one where every stage changes the shape, and one where the first keeps it
        (ResNet, 8, [8, 16, 24, 40]),
        (ResNet, 14, [8, 8, 16, 24]),
        (WideResNet, 16, [8, 16, 24, 40]),
        (WideResNet, 10, [8, 8, 16, 24]),
    ],
)
def test_equals_the_network_written_out_layer_by_layer(kind: type[nn.Module], depth: int, widths: list[int]) -> None:
    network, truth = kind(depth, widths, 10).double(), plain(kind, depth, widths).double()
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.dim() == 1:  # no batch norm leaves things as they are
                tensor.uniform_(0.5, 1.5)
    # Both list the tensors in the order of RepDistiller's files; only the names differ.
    truth.load_state_dict(dict(zip(truth.state_dict(), network.state_dict().values(), strict=True)))
    images, labels = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 5, 9])
    logits, gradients = [], []
    for model in (network, truth):
        logits.append(model(images))
        gradients.append(torch.autograd.grad(F.cross_entropy(logits[-1], labels), list(model.parameters())))
    torch.testing.assert_close(*logits)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(network.buffers(), truth.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(network.eval()(images), truth.eval()(images))


@pytest.mark.parametrize(("kind", "depth"), [(ResNet, 14), (WideResNet, 16)])
def test_initialisation(kind: type[nn.Module], depth: int) -> None:
    network = kind(depth, [16, 32, 64, 128], 100)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2.0 / (module.kernel_size[0] ** 2 * module.out_channels))
            # The sample deviation of n normal draws has a relative error of 1/sqrt(2n); five of those.
            assert module.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * module.weight.numel()))
            assert module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    bound = 1 / math.sqrt(128)  # torch's linear layer draws evenly from -bound to bound
    weight, bias = network.classifier.weight, network.classifier.bias
    assert 0.99 * bound < weight.abs().max() <= bound
    assert 0.5 * bound < bias.abs().max() <= bound if kind is ResNet else not bias.any()


@pytest.mark.parametrize(("kind", "depth"), [(ResNet, 2), (ResNet, 19), (WideResNet, 4), (WideResNet, 17)])
def test_no_network_of_such_a_depth(kind: type[nn.Module], depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth must be 6n .* with n >= 1, got {depth}"):
        kind(depth, [16, 16, 32, 64], 10)
