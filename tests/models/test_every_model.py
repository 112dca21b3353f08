"""What holds of every network: size, features, widths, seeds; side by side by vmap, traced by torch.compile."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.models import MODELS, ModelSettings, build_model, feature_shapes

DEEPENED = ("vgg13", "resnet8x4", "wrn_16_2", "resnet18")
"""One network of each kind that runs stage by stage."""
FAMILIES = (*DEEPENED[:3], "resnet50", "mobilenetv2_half", "shufflenetv1", "shufflenetv2")
"""One network of each kind of block."""


def draw_images(count: int, channels: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, channels, size, size, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


def build(name: str, width: float = 1.0, *, channels: int = 3, seed: int = 0) -> nn.Module:
    network = build_model(ModelSettings(name=name, width=width), 10, channels, seed)
    return network.to(memory_format=torch.channels_last)


# Parameters, counted from the definitions. Batch norm has two a channel.


def vgg_parameters(convolutions: tuple[int, ...], channels: int, classes: int) -> int:
    count, before = 0, channels
    for width, layers in zip((64, 128, 256, 512, 512), convolutions, strict=True):
        for _ in range(layers):
            count += 9 * before * width + width + 2 * width
            before = width
    return count + 512 * classes + classes


def resnet_parameters(depth: int, first: int, widths: tuple[int, ...], channels: int, classes: int) -> int:
    blocks = (depth - 2) // 6
    count, before = 9 * channels * first + 2 * first, first
    for stage, width in enumerate(widths):
        count += 9 * before * width + 9 * width * width * (2 * blocks - 1) + 2 * blocks * 2 * width
        if stage > 0 or before != width:
            count += before * width + 2 * width
        before = width
    return count + before * classes + classes


def wide_resnet_parameters(depth: int, factor: int, channels: int, classes: int) -> int:
    blocks = (depth - 4) // 6
    count, before = 9 * channels * 16, 16
    for width in (16 * factor, 32 * factor, 64 * factor):
        count += 9 * before * width + 9 * width * width * (2 * blocks - 1)
        count += before * width if before != width else 0
        count += 2 * before + 2 * width * (2 * blocks - 1)
        before = width
    return count + 2 * before + before * classes + classes


def deep_resnet_parameters(blocks: tuple[int, ...], expansion: int, channels: int, classes: int) -> int:
    """With an expansion of 1, two convolutions 3x3 in a block; of 4, a bottleneck."""
    count, before = 9 * channels * 64 + 2 * 64, 64
    for stage, (number, inner) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True)):
        width = expansion * inner
        for _ in range(number):
            if expansion == 1:
                count += 9 * before * width + 9 * width * width + 4 * width
            else:
                count += before * inner + 9 * inner * inner + inner * width + 4 * inner + 2 * width
            if before != width:
                count += before * width + 2 * width
            before = width
        assert stage or before == 64 * expansion
    return count + before * classes + classes


def mobilenet_parameters(channels: int, classes: int) -> int:
    count, before = 9 * channels * 16 + 2 * 16, 16
    for width, number, expansion in (
        (8, 1, 1), (12, 2, 6), (16, 3, 6), (32, 4, 6), (48, 3, 6), (80, 3, 6), (160, 1, 6),
    ):  # fmt: skip
        for _ in range(number):
            inner = expansion * before
            count += before * inner + 9 * inner + inner * width + 4 * inner + 2 * width
            before = width
    return count + before * 1280 + 2 * 1280 + 1280 * classes + classes


def shufflenetv1_parameters(channels: int, classes: int) -> int:
    count, before = 24 * channels + 2 * 24, 24
    for width, number in ((240, 4), (480, 8), (960, 4)):
        for block in range(number):
            own = width - before if block == 0 else width
            inner, groups = own // 4, 1 if before == 24 else 3
            count += before * inner // groups + 9 * inner + inner * own // 3 + 4 * inner + 2 * own
            before = width
    return count + 960 * classes + classes


def shufflenetv2_parameters(channels: int, classes: int) -> int:
    count, before = 24 * channels + 2 * 24, 24
    for half, number in ((58, 3), (116, 7), (232, 3)):
        count += 9 * before + before * half + 2 * before + 2 * half  # left, then right
        count += before * half + 9 * half + half * half + 6 * half
        count += number * (2 * half * half + 9 * half + 6 * half)
        before = 2 * half
    return count + 464 * 1024 + 2 * 1024 + 1024 * classes + classes


COUNTED = {
    "vgg8": (vgg_parameters, (1, 1, 1, 1, 1)),
    "vgg11": (vgg_parameters, (1, 1, 2, 2, 2)),
    "vgg13": (vgg_parameters, (2, 2, 2, 2, 2)),
    "vgg16": (vgg_parameters, (2, 2, 3, 3, 3)),
    "vgg19": (vgg_parameters, (2, 2, 4, 4, 4)),
    "resnet8": (resnet_parameters, 8, 16, (16, 32, 64)),
    "resnet14": (resnet_parameters, 14, 16, (16, 32, 64)),
    "resnet20": (resnet_parameters, 20, 16, (16, 32, 64)),
    "resnet32": (resnet_parameters, 32, 16, (16, 32, 64)),
    "resnet44": (resnet_parameters, 44, 16, (16, 32, 64)),
    "resnet56": (resnet_parameters, 56, 16, (16, 32, 64)),
    "resnet110": (resnet_parameters, 110, 16, (16, 32, 64)),
    "resnet8x4": (resnet_parameters, 8, 32, (64, 128, 256)),
    "resnet32x4": (resnet_parameters, 32, 32, (64, 128, 256)),
    "resnet18": (deep_resnet_parameters, (2, 2, 2, 2), 1),
    "resnet34": (deep_resnet_parameters, (3, 4, 6, 3), 1),
    "resnet50": (deep_resnet_parameters, (3, 4, 6, 3), 4),
    "wrn_16_1": (wide_resnet_parameters, 16, 1),
    "wrn_16_2": (wide_resnet_parameters, 16, 2),
    "wrn_40_1": (wide_resnet_parameters, 40, 1),
    "wrn_40_2": (wide_resnet_parameters, 40, 2),
    "mobilenetv2_half": (mobilenet_parameters,),
    "shufflenetv1": (shufflenetv1_parameters,),
    "shufflenetv2": (shufflenetv2_parameters,),
}
FOR_100_CLASSES = {  # of RepDistiller's networks
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "resnet18": 11_220_132,
    "resnet34": 21_328_292,
    "resnet50": 23_705_252,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "mobilenetv2_half": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count(name: str) -> None:
    formula, *arguments = COUNTED[name]
    for channels, classes in ((3, 100), (1, 10)):
        with torch.device("meta"):
            network = MODELS[name](classes, in_channels=channels)
        assert sum(p.numel() for p in network.parameters()) == formula(*arguments, channels, classes)
    assert formula(*arguments, 3, 100) == FOR_100_CLASSES[name]
    assert f"{FOR_100_CLASSES[name]:,} parameters for 100 classes" in (MODELS[name].__doc__ or "")


def stage_widths(name: str) -> tuple[int, ...]:
    """At half the width."""
    if name.startswith("vgg"):
        return (32, 64, 128, 256, 256)
    if name.endswith(("_2", "x4")):
        return (16, 32, 64) if name.startswith("wrn") else (32, 64, 128)
    return {
        "resnet18": (32, 64, 128, 256),
        "resnet34": (32, 64, 128, 256),
        "resnet50": (128, 256, 512, 1024),
        "mobilenetv2_half": (8, 8, 24, 640),
        "shufflenetv1": (120, 240, 480),
        "shufflenetv2": (56, 112, 512),
    }.get(name, (8, 16, 32))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", MODELS)
def test_features(name: str, size: int) -> None:
    network = build(name, 0.5, channels=1)
    logits, features = network(draw_images(2, 1, size), return_features=True)
    assert logits.shape == (2, 10)
    widths = stage_widths(name)
    first = size // 2 if name.startswith(("mobile", "shuffle")) else size
    sides = [first, first // 2, first // 4, first // 8, 4][: len(widths)]
    shapes = [(2, width, side, side) for width, side in zip(widths, sides, strict=True)]
    assert [tuple(maps.shape) for maps in features.after_relu] == shapes
    linear = feature_shapes(network, (1, size, size)).linear
    assert linear == ((0, 1, 2) if name.startswith("mobile") else ())
    for stage, (before, after) in enumerate(zip(features.before_relu, features.after_relu, strict=True)):
        assert before.min() < 0
        assert torch.equal(before if stage in linear else before.relu(), after)
    torch.testing.assert_close(features.pooled, features.after_relu[-1].mean(dim=(2, 3)))
    torch.testing.assert_close(network.classifier(features.pooled), logits)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", DEEPENED)
def test_stages_run_one_by_one_and_no_further_than_asked(name: str, size: int) -> None:
    images, networks = draw_images(4, 3, size), [build(name, 0.25), build(name, 0.25)]
    whole = networks[0].run_stages(images)
    pooled = whole[-1].mean(dim=(2, 3))
    torch.testing.assert_close(networks[0].classifier(pooled), networks[1](images))
    for count in range(1, len(whole) + 1):
        network = build(name, 0.25)
        ends = network.run_stages(images, count)
        assert len(ends) == count
        assert all(torch.equal(end, same) for end, same in zip(ends, whole, strict=False))
        run = [any(batches == 1 for key, batches in stage.named_buffers() if key.endswith("batches_tracked"))
               for stage in network.stages]  # fmt: skip
        assert run == [stage < count for stage in range(len(whole))]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_features_change_nothing_and_the_logits_are_float32(name: str, precision: torch.dtype) -> None:
    images, networks = draw_images(4), [build(name, 0.25), build(name, 0.25)]
    for training in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = networks[0].train(training)(images)
            same, features = networks[1].train(training)(images, return_features=True)
        assert torch.equal(logits, same)
        assert logits.dtype == torch.float32
        assert {maps.dtype for maps in (*features.before_relu, *features.after_relu)} == {precision}
        for one, other in zip(networks[0].buffers(), networks[1].buffers(), strict=True):
            assert torch.equal(one, other)


def test_width_multiplies_channels_and_keeps_multiples_of_eight() -> None:
    def widths(name: str, width: float) -> list[int]:
        network = MODELS[name](10, width=width)
        return [network.conv.out_channels, *(stage[-1].conv2.out_channels for stage in network.stages)]

    assert widths("resnet20", 0.7) == [8, 8, 24, 48]  # 11.2, 11.2, 22.4 and 44.8
    assert widths("resnet8x4", 0.01) == [8, 8, 8, 8]
    assert widths("wrn_16_2", 1.5) == [24, 48, 96, 192]


@pytest.mark.parametrize("name", MODELS)
def test_a_width_is_positive(name: str) -> None:
    with pytest.raises(ValueError, match="width must be positive, got -1"):
        MODELS[name](10, width=-1)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_a_function_of_its_seed_and_leaves_the_global_random_state_alone(name: str) -> None:
    state = torch.random.get_rng_state()
    first, second, other = (build(name, 0.125, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    for key, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[key])
    assert not torch.equal(first.state_dict()["classifier.weight"], other.state_dict()["classifier.weight"])


@pytest.mark.parametrize(
    ("training", "precision"), [(True, torch.float32), (True, torch.bfloat16), (False, torch.float32)]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_networks_side_by_side_by_vmap(name: str, training: bool, precision: torch.dtype) -> None:
    images = draw_images(4)
    networks = [build(name, 0.125, seed=seed).train(training) for seed in (0, 1)]
    weights, buffers = torch.func.stack_module_state(networks)
    state = {key: buffer.clone() for key, buffer in buffers.items()}

    def outputs(weights: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits, features = torch.func.functional_call(networks[0], (weights, state), (images, True))
        return logits, features.before_relu[-1], features.pooled

    exact = [copy.deepcopy(network) for network in networks]
    narrow = precision == torch.bfloat16
    # Rounding values of about 1 to bfloat16 moves their mean by 2^-9 at most, of which a tenth is kept.
    rounding = 0.1 * 2**-9 if narrow else 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
        stacked = torch.func.vmap(outputs)(weights, state)
        alone = [network(images, return_features=True) for network in networks]
    for i, network in enumerate(networks):
        (logits, features), (exact_logits, exact_features) = alone[i], exact[i](images, return_features=True)
        own = logits, features.before_relu[-1], features.pooled
        true = exact_logits, exact_features.before_relu[-1], exact_features.pooled
        # In bfloat16 the errors of many layers add up: those of the stack are as large as those of a network alone.
        for mapped, single, wanted in zip(stacked, own, true, strict=True):
            assert (mapped[i] - wanted).norm() <= 2.0 * (single - wanted).norm() + 1e-4 * wanted.norm()
        for (key, buffer), wanted in zip(network.named_buffers(), exact[i].buffers(), strict=True):
            error, error_alone = ((found - wanted).float().norm() for found in (state[key][i], buffer))
            assert error <= 2.0 * error_alone + 1e-4 * wanted.float().norm() + rounding * buffer.numel() ** 0.5, key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_is_one_graph(name: str) -> None:
    """Nothing in it waits for a number: torch.compile would break the graph there."""
    gradients = []
    for compiles in (False, True):
        network = build(name, 0.125)
        forward = torch.compile(network, backend="aot_eager", fullgraph=True) if compiles else network
        loss = F.cross_entropy(forward(draw_images(4)), torch.arange(4))
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)
