"""MobileNetV2 and the ShuffleNets against their definitions in float64, written with torch's functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.models import MODELS


def conv_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, *, groups: int = 1, stride: int = 1) -> Tensor:
    weight = conv.weight.double()
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
    mean, variance = norm.running_mean.double().clone(), norm.running_var.double().clone()
    scale, shift = norm.weight.double(), norm.bias.double()
    return F.batch_norm(x, mean, variance, scale, shift, norm.training, eps=1e-5)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel i of group g comes to place i * groups + g."""
    size = x.shape[1] // groups
    order = [group * size + i for i in range(size) for group in range(groups)]
    return x[:, order]


def mobilenet(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    x = F.relu(conv_norm(network.conv, network.norm, images, stride=2))
    strides, maps = iter([1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]), [x]
    for stage in network.stages:
        for block in stage:
            stride, inner = next(strides), block.conv1.out_channels
            y = F.relu(conv_norm(block.conv1, block.norm1, x))
            y = F.relu(conv_norm(block.conv2, block.norm2, y, groups=inner, stride=stride))
            y = conv_norm(block.conv3, block.norm3, y)
            x = x + y if stride == 1 and x.shape == y.shape else y
        maps.append(x)
    last = conv_norm(network.top_conv, network.top_norm, x)
    return F.relu(last), [*maps[1:-1], last], maps


def shufflenetv1(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    x = F.relu(conv_norm(network.conv, network.norm, images))
    stem, before = x, []
    for number, stage in enumerate(network.stages):
        for place, block in enumerate(stage):
            groups, stride, inner = (
                (1 if number == place == 0 else 3),
                (2 if place == 0 else 1),
                block.conv1.out_channels,
            )
            y = shuffled(F.relu(conv_norm(block.conv1, block.norm1, x, groups=groups)), groups)
            y = F.relu(conv_norm(block.conv2, block.norm2, y, groups=inner, stride=stride))
            y = conv_norm(block.conv3, block.norm3, y, groups=3)
            y = x + y if stride == 1 else torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1)
            x = F.relu(y)
        before.append(y)
    return x, before, [stem, *before]


def shufflenetv2(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    x = F.relu(conv_norm(network.conv, network.norm, images))
    maps = [x]
    for stage in network.stages:
        halving, *keeping = stage
        left = conv_norm(halving.conv1, halving.norm1, x, groups=x.shape[1], stride=2)
        left = F.relu(conv_norm(halving.conv2, halving.norm2, left))
        right = F.relu(conv_norm(halving.conv3, halving.norm3, x))
        right = conv_norm(halving.conv4, halving.norm4, right, groups=right.shape[1], stride=2)
        right = F.relu(conv_norm(halving.conv5, halving.norm5, right))
        x = shuffled(torch.cat([left, right], 1), 2)
        for block in keeping:
            half = x.shape[1] // 2
            y = F.relu(conv_norm(block.conv1, block.norm1, x[:, half:]))
            y = conv_norm(block.conv2, block.norm2, y, groups=half)
            before = shuffled(torch.cat([x[:, :half], conv_norm(block.conv3, block.norm3, y)], 1), 2)
            x = F.relu(before)
        maps.append(before)
    last = conv_norm(network.top_conv, network.top_norm, x)
    return F.relu(last), [*maps[1:-1], last], maps


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "formula"),
    [("mobilenetv2_half", mobilenet), ("shufflenetv1", shufflenetv1), ("shufflenetv2", shufflenetv2)],
)
def test_a_network_is_its_definition(name: str, formula: object, training: bool) -> None:
    torch.manual_seed(0)
    network = MODELS[name](10, width=0.5).double().train(training)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.running_var):
            tensor.uniform_(0.5, 1.5)
        for tensor in (norm.bias.data, norm.running_mean):
            tensor.uniform_(-0.5, 0.5)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    last, before, (stem, *ends) = formula(network, images)
    logits = last.mean((2, 3)) @ network.classifier.weight.T + network.classifier.bias
    found, features = network(images, return_features=True)
    torch.testing.assert_close(found, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network(images), logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features.pooled, last.mean((2, 3)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features.stem, stem, rtol=1e-9, atol=1e-9)
    if name == "shufflenetv2":  # its blocks end after the ReLU
        ends = [end.relu() for end in ends]
    for maps, expected in ((features.before_relu, before), (features.block_sums, ends)):
        for one, other in zip(maps, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
