"""Features against networks written by hand in the published form (RepDistiller), whose maps are taken by hooks."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.models import (
    MODELS,
    FeatureName,
    Features,
    ModelSettings,
    build_model,
    feature_shapes,
    logits_and_features,
)

SIZE, CLASSES = 32, 10


class PlainVGG(nn.Module):
    """Blocks of convolution, batch norm and ReLU; max-pooling after the first three blocks."""

    def __init__(self, widths: list[list[int]]) -> None:
        super().__init__()
        before, self.blocks = 3, nn.ModuleList()
        for block in widths:
            layers: list[nn.Module] = []
            for width in block:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            self.blocks.append(nn.Sequential(*layers[:-1]))
        self.linear = nn.Linear(before, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = F.relu(block(x))
            x = F.max_pool2d(x, 2) if number < 3 else x
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PlainBlock(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.sum, self.downsample = nn.Identity(), nn.Sequential()
        if stride != 1 or before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.sum(inner + self.downsample(x)))


class PlainBottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        inner = width // 4
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.sum, self.downsample = nn.Identity(), nn.Sequential()
        if stride != 1 or before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.sum(self.bn3(self.conv3(inner)) + self.downsample(x)))


class PlainResNet(nn.Module):
    def __init__(self, block: type[nn.Module], first: int, widths: list[int], counts: list[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(first), nn.ReLU()
        self.layers = _stages(block, first, widths, counts)
        self.linear = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.relu(self.bn1(self.conv1(x))))
        return self.linear(x.mean((2, 3)))


class PlainPreactivatedBlock(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.sum, self.shortcut = nn.Identity(), None
        if stride != 1 or before != width:
            self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        inner = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return self.sum(inner + (x if self.shortcut is None else self.shortcut(active)))


class PlainWideResNet(nn.Module):
    def __init__(self, first: int, widths: list[int], counts: list[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.layers = _stages(PlainPreactivatedBlock, first, widths, counts)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.linear = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.bn(self.layers(self.conv1(x)))).mean((2, 3)))


def _stages(
    block: Callable[[int, int, int], nn.Module], first: int, widths: list[int], counts: list[int]
) -> nn.Sequential:
    stages, before = [], first
    for number, (width, count) in enumerate(zip(widths, counts, strict=True)):
        strides = [2 if number else 1] + [1] * (count - 1)
        stages.append(nn.Sequential(*(block(before if i == 0 else width, width, s) for i, s in enumerate(strides))))
        before = width
    return nn.Sequential(*stages)


def plain_copy(name: str, network: nn.Module) -> nn.Module:
    """With the same weights and statistics, in float64."""
    if name.startswith("vgg"):
        plain: nn.Module = PlainVGG([[conv.out_channels for conv in stage.conv] for stage in network.stages])
    else:
        first, counts = network.conv.out_channels, [len(stage) for stage in network.stages]
        block = PlainBottleneck if name == "resnet50" else PlainBlock
        widths = [(stage[-1].norm3 if name == "resnet50" else stage[-1].norm2).num_features for stage in network.stages]
        plain = (
            PlainWideResNet(first, widths, counts)
            if name.startswith("wrn")
            else PlainResNet(block, first, widths, counts)
        )
    # Shortcuts come last in our blocks, and batch norms in the order in which they are applied.
    for layer in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):
        pairs = zip(_of_type(plain, layer), _of_type(network, layer), strict=True)
        for copied, original in pairs:
            copied.load_state_dict(original.state_dict())
    return plain.double()


def _of_type(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


def published_maps(name: str, plain: nn.Module, images: Tensor) -> tuple[Tensor, Features]:
    """Logits and features by hooks."""
    seen: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module) -> nn.Module:
        module.register_forward_hook(lambda module, inputs, output: seen.__setitem__(module, output))
        return module

    wide = name.startswith("wrn")
    inputs: list[Tensor] = []
    plain.linear.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    if name.startswith("vgg"):
        before = list(map(watch, plain.blocks))
        stem, sums = None, []
    else:
        sums = [watch(stage[-1].sum) for stage in plain.layers]
        stem = watch(plain.conv1 if wide else plain.relu)
        # The batch norm that follows a stage of a wide residual network is the first of the next stage.
        following = (plain.layers[1][0].bn1, plain.layers[2][0].bn1, plain.bn) if wide else ()
        before = list(map(watch, following)) if wide else sums
    logits = plain(images)
    maps = [seen[module] for module in before]
    return logits, Features(
        maps, [each.relu() for each in maps], inputs[0], None if stem is None else seen[stem], [seen[s] for s in sums]
    )


def random_network(name: str) -> nn.Module:
    """With statistics and shifts of batch norm that are not those of the start."""
    network = build_model(ModelSettings(name=name, width=0.125), CLASSES, 3, seed=1)
    generator = torch.Generator().manual_seed(2)
    for norm in _of_type(network, nn.BatchNorm2d):
        for tensor in (norm.weight.data, norm.running_var):
            tensor.uniform_(0.5, 1.5, generator=generator)
        for tensor in (norm.bias.data, norm.running_mean):
            tensor.uniform_(-0.5, 0.5, generator=generator)
    return network


def tensors(features: Features) -> list[Tensor]:
    stem = [] if features.stem is None else [features.stem]
    return [*features.before_relu, *features.after_relu, *stem, *features.block_sums, features.pooled]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("vgg", "resnet", "wrn"))])
def test_features_are_those_of_the_published_networks(name: str, training: bool) -> None:
    network = random_network(name).train(training)
    plain = plain_copy(name, network).train(training)
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected_logits, expected = published_maps(name, plain, images)
    logits, features = network.double()(images, return_features=True)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-9, atol=1e-9)
    assert (features.stem is None) == name.startswith("vgg")
    assert len(features.block_sums) == (0 if name.startswith("vgg") else len(network.stages))
    for found, wanted in zip(tensors(features), tensors(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_those_of_the_features(name: str) -> None:
    network = random_network(name)
    shapes = feature_shapes(network, (3, SIZE, SIZE))
    _, features = network(torch.randn(2, 3, SIZE, SIZE), return_features=True)
    assert shapes.maps == tuple(tuple(maps.shape[1:]) for maps in features.before_relu)
    assert shapes.maps == tuple(tuple(maps.shape[1:]) for maps in features.after_relu)
    assert shapes.block_sums == tuple(tuple(maps.shape[1:]) for maps in features.block_sums)
    assert shapes.stem == (None if features.stem is None else tuple(features.stem.shape[1:]))
    assert (shapes.pooled,) == tuple(features.pooled.shape[1:])


@pytest.mark.parametrize("wanted", ["stages", "stem", "block_sums"])
@pytest.mark.parametrize("name", ["vgg8", "resnet20", "wrn_16_2"])
def test_features_that_were_not_asked_for_are_left_out(name: str, wanted: FeatureName) -> None:
    network, images = random_network(name), torch.randn(2, 3, SIZE, SIZE)
    _, everything = network.eval()(images, return_features=True)
    logits, features = logits_and_features(network, (wanted,), images)
    assert torch.equal(logits, network(images))
    assert torch.equal(features.pooled, everything.pooled)
    given = features._asdict()
    for field in {"stages": ("before_relu", "after_relu")}.get(wanted, (wanted,)):
        there, known = given.pop(field), getattr(everything, field)
        assert there is known or len(there) == len(known)
    assert [value for field, value in given.items() if field != "pooled" and value not in (None, ())] == []
    assert logits_and_features(network, (), images)[1] is None


@pytest.mark.parametrize("name", ["vgg8", "resnet20", "wrn_16_2"])
def test_a_network_with_its_features_is_one_graph(name: str) -> None:
    eager = random_network(name)
    traced = copy.deepcopy(eager)
    images, wanted = torch.randn(4, 3, SIZE, SIZE), ("stages", "stem", "block_sums")
    forward = torch.compile(partial(logits_and_features, traced, wanted), backend="aot_eager", fullgraph=True)
    logits, features = forward(images)
    expected_logits, expected = logits_and_features(eager, wanted, images)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    for found, map in zip(tensors(features), tensors(expected), strict=True):
        torch.testing.assert_close(found, map, rtol=1e-4, atol=1e-5)


def test_maps_are_converted_to_float32_once_and_their_gradients_are_summed_there() -> None:
    maps = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16).requires_grad_()
    features = Features([maps], [maps], maps.mean((2, 3)), maps, [maps]).in_float32()
    assert {part.dtype for part in tensors(features)} == {torch.float32}
    read = features.after_relu[-1]
    assert features.after_relu[0] is read
    assert features.after_relu[:1] == [read]
    assert features.as_computed().after_relu[0] is maps
    with pytest.raises(IndexError):
        features.after_relu[1]
    # 256 + 1 + 1 + ... in bfloat16 stays 256: each sum is rounded.
    loss = 256.0 * read.sum() + sum(features.after_relu[0].sum() for _ in range(6))
    (gradient,) = torch.autograd.grad(loss, maps)
    assert gradient.eq(262.0).all()
