"""What holds of every network: size, features, widths, seeds; side by side by vmap, traced by torch.compile."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.models import MODELS, ModelSettings, build_model

FAMILIES = ("vgg13", "resnet8x4", "wrn_16_2")
"""One network of each kind."""


def draw_images(count: int, channels: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, channels, size, size, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


def build(name: str, width: float = 1.0, *, channels: int = 3, seed: int = 0) -> nn.Module:
    network = build_model(ModelSettings(name=name, width=width), 10, channels, seed)
    return network.to(memory_format=torch.channels_last)


# Parameters, counted from the definitions. Batch norm has two a channel.


def vgg_parameters(convolutions: int, channels: int, classes: int) -> int:
    count, before = 0, channels
    for width in (64, 128, 256, 512, 512):
        for _ in range(convolutions):
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
        count += 9 * before * width + 9 * width * width * (2 * blocks - 1) + before * width
        count += 2 * before + 2 * width * (2 * blocks - 1)
        before = width
    return count + 2 * before + before * classes + classes


COUNTED = {
    "vgg8": (vgg_parameters, 1),
    "vgg13": (vgg_parameters, 2),
    "resnet20": (resnet_parameters, 20, 16, (16, 32, 64)),
    "resnet32": (resnet_parameters, 32, 16, (16, 32, 64)),
    "resnet56": (resnet_parameters, 56, 16, (16, 32, 64)),
    "resnet110": (resnet_parameters, 110, 16, (16, 32, 64)),
    "resnet8x4": (resnet_parameters, 8, 32, (64, 128, 256)),
    "resnet32x4": (resnet_parameters, 32, 32, (64, 128, 256)),
    "wrn_16_2": (wide_resnet_parameters, 16, 2),
    "wrn_40_2": (wide_resnet_parameters, 40, 2),
}
FOR_100_CLASSES = {  # of RepDistiller's networks
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_2": 703_284,
    "wrn_40_2": 2_255_156,
}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count(name: str) -> None:
    formula, *arguments = COUNTED[name]
    for channels, classes in ((3, 100), (1, 10)):
        network = MODELS[name](classes, in_channels=channels)
        assert sum(p.numel() for p in network.parameters()) == formula(*arguments, channels, classes)
    assert formula(*arguments, 3, 100) == FOR_100_CLASSES[name]
    assert f"{FOR_100_CLASSES[name]:,} parameters for 100 classes" in (MODELS[name].__doc__ or "")


def stage_widths(name: str) -> tuple[int, ...]:
    """At full width."""
    if name.startswith("vgg"):
        return (64, 128, 256, 512, 512)
    if name.startswith("wrn"):
        return (32, 64, 128)
    return (64, 128, 256) if name.endswith("x4") else (16, 32, 64)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", MODELS)
def test_features(name: str, size: int) -> None:
    network = build(name, 0.5, channels=1)
    logits, features = network(draw_images(2, 1, size), return_features=True)
    assert logits.shape == (2, 10)
    widths = [width // 2 for width in stage_widths(name)]
    sides = [size, size // 2, size // 4, size // 8, 4][: len(widths)]
    shapes = [(2, width, side, side) for width, side in zip(widths, sides, strict=True)]
    assert [tuple(maps.shape) for maps in features.after_relu] == shapes
    for before, after in zip(features.before_relu, features.after_relu, strict=True):
        assert before.min() < 0
        assert torch.equal(before.relu(), after)
    torch.testing.assert_close(features.pooled, features.after_relu[-1].mean(dim=(2, 3)))
    torch.testing.assert_close(network.classifier(features.pooled), logits)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", FAMILIES)
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


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_networks_side_by_side_by_vmap(name: str, training: bool, precision: torch.dtype) -> None:
    images = draw_images(8)
    networks = [build(name, 0.25, seed=seed).train(training) for seed in (0, 1)]
    weights, buffers = torch.func.stack_module_state(networks)
    state = {key: buffer.clone() for key, buffer in buffers.items()}

    def outputs(weights: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits, features = torch.func.functional_call(networks[0], (weights, state), (images, True))
        return logits, features.before_relu[-1], features.pooled

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        stacked = torch.func.vmap(outputs)(weights, state)
    for i, network in enumerate(networks):
        logits, features = network(images, return_features=True)
        # Ten layers or fewer round three tensors each, in bfloat16 by 2^-9 of their size.
        tolerance = 1e-4 if precision == torch.float32 else 30 * 2**-9
        for mapped, alone in zip(stacked, (logits, features.before_relu[-1], features.pooled), strict=True):
            assert (mapped[i] - alone).norm() <= tolerance * alone.norm()
        for key, buffer in network.named_buffers():
            assert (state[key][i] - buffer).float().norm() <= tolerance * buffer.float().norm(), key


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
