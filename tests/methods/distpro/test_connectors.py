"""Connectors: what they make of a map, and how two maps are compared."""

import math

import pytest
import torch
from torch import Tensor

from tests.methods.distpro.steps import shapes
from tfkd_fast.methods.distpro.connectors import Connectors, hierarchical_context_loss
from tfkd_fast.methods.distpro.pathways import PathwaySettings, Transform, find_pathways
from tfkd_fast.models import FeatureShapes
from tfkd_fast.models.layers import average_pool_to


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean_of_windows(maps: Tensor, level: int) -> Tensor:
    """Window w of a side of n positions: from floor(w n / level) to ceil((w + 1) n / level), as torch has it."""
    height, width = maps.shape[-2:]

    def window(index: int, length: int) -> slice:
        return slice(index * length // level, -(-(index + 1) * length // level))

    rows = [
        torch.stack([maps[..., window(y, height), window(x, width)].mean((-2, -1)) for x in range(level)], -1)
        for y in range(level)
    ]
    return torch.stack(rows, -2)


def written_out(student: Tensor, teacher: Tensor) -> Tensor:
    """For one sample (C,H,W)."""
    parts = [(1.0, (student - teacher).square().mean())]
    for level in (4, 2, 1):
        if level < student.shape[-2]:
            difference = mean_of_windows(student, level) - mean_of_windows(teacher, level)
            parts.append((0.5 ** len(parts), difference.square().mean()))
    return sum(c * loss for c, loss in parts) / sum(c for c, _ in parts)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (4, 4), (2, 2), (1, 1), (7, 7), (8, 6), (6, 12), (10, 3)])
def test_the_hierarchical_context_loss_is_its_formula(size: tuple[int, int]) -> None:
    student, teacher = draw(3, 5, *size).requires_grad_(), draw(3, 5, *size, seed=1)
    loss = hierarchical_context_loss(student, teacher)
    expected = torch.stack([written_out(*pair) for pair in zip(student, teacher, strict=True)])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), student, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), student)[0], rtol=1e-11, atol=1e-15)


def test_maps_of_half_precision_are_compared_in_float32() -> None:
    student, teacher = draw(2, 5, 8, 8), draw(2, 5, 8, 8, seed=1)
    half = student.bfloat16(), teacher.bfloat16()
    loss = hierarchical_context_loss(*half)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, hierarchical_context_loss(*(maps.float() for maps in half)), rtol=0, atol=0)


def test_averages_are_those_of_torch_whether_or_not_the_sizes_divide() -> None:
    maps = draw(2, 3, 12, 8)
    for size in ((4, 4), (6, 2), (5, 3)):
        expected = torch.nn.functional.adaptive_avg_pool2d(maps, size)
        torch.testing.assert_close(average_pool_to(maps, size), expected, rtol=1e-12, atol=1e-15)


def build(transform: Transform, student: tuple[int, int, int], teacher: tuple[int, int, int]) -> torch.nn.Module:
    of_student, of_teacher = FeatureShapes((student,), 1), FeatureShapes((teacher,), 1)
    settings = PathwaySettings(all_pairs=True, transforms=(transform,))
    pathways = find_pathways(of_teacher, of_student, settings)
    return Connectors(pathways, of_teacher, of_student, seed=0).connectors[0]


@pytest.mark.parametrize("transform", ["identity-1x1", "complex"])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_connector_leads_to_the_channels_and_the_size_of_the_teacher(transform: Transform, size: int) -> None:
    connector = build(transform, (6, size, size), (10, 8, 8))
    result = connector(draw(3, 6, size, size).float(), (8, 8))
    assert result.shape == (3, 10, 8, 8)
    # batch norm comes last, over the maps before they grow or at full size
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(10), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.var((0, 2, 3), correction=0), torch.ones(10), rtol=1e-3, atol=0)


def test_a_complex_connector_is_what_the_authors_wrote() -> None:
    """Against torch's modules; maps of the student are smaller, so that nearest neighbours are repeated."""
    connector = build("complex", (6, 4, 4), (10, 8, 8)).double()
    convolutions = [connector.conv1, connector.gate, connector.conv2, connector.conv3]
    assert [tuple(conv.weight.shape) for conv in convolutions] == [
        (6, 6, 3, 3),
        (1, 6, 1, 1),
        (6, 6, 3, 3),
        (10, 6, 3, 3),
    ]
    assert all(conv.bias is None for conv in convolutions)

    def normalised(x: Tensor) -> Tensor:
        return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    def convolved(x: Tensor, conv: torch.nn.Module) -> Tensor:
        return torch.nn.functional.conv2d(x, conv.weight, padding=conv.weight.shape[-1] // 2)

    images = draw(3, 6, 4, 4)
    x = normalised(convolved(images, connector.conv1)).clamp(min=0)
    x = x * convolved(x, connector.gate)
    x = normalised(convolved(x, connector.conv2)).clamp(min=0)
    x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = normalised(convolved(x, connector.conv3))
    torch.testing.assert_close(connector(images, (8, 8)), expected, rtol=1e-9, atol=1e-9)


def test_connectors_are_drawn_from_their_seed_alone() -> None:
    networks = shapes("vgg13"), shapes("vgg8")
    pathways = find_pathways(*networks, PathwaySettings())
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (Connectors(pathways, *networks, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["connectors.29.conv1.weight"], other["connectors.29.conv1.weight"])


@pytest.mark.parametrize("transform", ["identity-1x1", "complex"])
def test_connectors_begin_as_those_of_the_authors(transform: Transform) -> None:
    """Convolutions are normal with a variance of 2 by fan-out, sqrt(2 / (k^2 out)), and the gate is uniform as torch
    draws it, within 1 / sqrt(in): its deviation is 1 / sqrt(3 in). Of n numbers the deviation is known to
    1 / sqrt(2 n); five of these."""
    connector = build(transform, (96, 8, 8), (160, 8, 8))
    found = {name: module.weight for name, module in connector.named_children() if isinstance(module, torch.nn.Conv2d)}
    assert len(found) == (1 if transform == "identity-1x1" else 4)
    for name, weight in found.items():
        out, into, side, _ = weight.shape
        wanted = 1 / math.sqrt(3 * into) if name == "gate" else math.sqrt(2 / (side * side * out))
        assert weight.std().item() == pytest.approx(wanted, rel=5 / math.sqrt(2 * weight.numel())), name
        assert name != "gate" or weight.abs().max() <= 1 / math.sqrt(into)
