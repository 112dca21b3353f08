"""Methods whose student teaches itself have the losses and gradients of the published code, in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.methods.published import (
    BATCH,
    CLASSES,
    PUBLISHED,
    STUDENT,
    assert_published,
    build,
    entropies,
    features_of,
    fill,
    outputs,
    with_features,
)
from tfkd_fast.methods.base import StepBatch
from tfkd_fast.models import Features, FeatureShapes
from tfkd_fast.models.resnet import resnet8


def leaves_and_batch(shapes: FeatureShapes = STUDENT) -> tuple[dict[str, list[Tensor]], StepBatch]:
    """All tensors with gradient by their names in `published.json`, and a batch of them."""
    leaves, batch = outputs()
    maps, batch = with_features(leaves, batch, student=shapes)
    return {name: [tensor] for name, tensor in leaves.items()} | {"maps": maps}, batch


def test_byot() -> None:
    """A cross-entropy with softened predictions is larger than a divergence by their entropy."""
    method = build("byot")
    branches, adaptations = method.adapters.children()
    for number, branch in enumerate(branches):
        fill(branch, 7 + number)
    for number, adaptation in enumerate(adaptations):
        fill(adaptation, 7 + number).float()  # as branches give float32
    leaves, batch = leaves_and_batch()
    expected, entropy = PUBLISHED["byot"], entropies(leaves["logits"][0].detach() / 3.0).mean()
    loss = method.loss(leaves["logits"][0], batch).total
    assert_published(loss, leaves, expected, expected["value"] - 3 * 0.3 * float(entropy))


def test_ddgsd() -> None:
    """Features are one and the same for both views. There the label has a quarter of the weight for each view."""
    method = build("ddgsd", loss={"weight": 2.0})
    leaves, batch = leaves_and_batch()
    alike = batch.need_companions()._replace(features=batch.need_features())
    loss = method.loss(leaves["logits"][0], replace(batch, companions=alike)).total / 2
    assert_published(loss, leaves, PUBLISHED["ddgsd"], PUBLISHED["ddgsd"]["value"])


def test_features_of_ddgsd_are_compared_by_their_means_over_the_batch() -> None:
    """Our reading of the paper; the published code takes the mean over the entries, too."""
    leaves, batch = leaves_and_batch()
    first, second = batch.need_features(), features_of(STUDENT, 20, 6)
    method = build("ddgsd", loss={"feature_weight": 0.25})
    other = batch.need_companions()._replace(features=second)
    loss = method.loss(leaves["logits"][0], replace(batch, companions=other)).terms["features"]
    difference = first.pooled.detach()[0].mean(0) - second.pooled[0].mean(0)
    assert float(loss.detach()) == pytest.approx(0.25 * float(difference @ difference), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), leaves["pooled"][0])
    torch.testing.assert_close(gradient[0], (0.5 / BATCH * difference).expand_as(gradient[0]), rtol=1e-12, atol=0.0)


def test_bake() -> None:
    leaves, batch = leaves_and_batch()
    loss = build("bake").loss(leaves["logits"][0], batch).total
    assert_published(loss, leaves, PUBLISHED["bake"], PUBLISHED["bake"]["value"])


def test_frskd() -> None:
    """Each stage has half the size of the one before."""
    shapes = FeatureShapes(((4, 16, 16), (6, 8, 8), (8, 4, 4), (8, 2, 2)), 8)
    method = build("frskd", student=shapes)
    shares = [tensor for name, tensor in fill(method.adapters).named_parameters() if name.endswith("shares")]
    leaves, batch = leaves_and_batch(shapes)
    loss = method.loss(leaves["logits"][0], batch).total
    assert_published(loss, leaves | {"adapters": shares}, PUBLISHED["frskd"], PUBLISHED["frskd"]["value"])


def test_mixskd() -> None:
    """On a narrow ResNet-8 of images of 8 pixels; the mixture is that of the first step."""
    shapes = FeatureShapes(((8, 8, 8), (16, 4, 4), (32, 2, 2)), 32)
    method = build("mixskd", student=shapes, build_student=lambda seed: resnet8(CLASSES, width=0.5))
    _, *behind_tails = map(fill, method.adapters.children())
    for layers in behind_tails:
        layers.float()  # as tails give float32
    leaves, batch = leaves_and_batch(shapes)
    other = features_of(shapes, 20, 6)
    mixed = [maps.requires_grad_() for maps in other.before_relu]
    features = Features(mixed, [maps.relu() for maps in mixed], other.pooled)
    batch = replace(batch, forward=lambda images: (leaves["again"][0], features))
    loss = method.loss(leaves["logits"][0], batch).total
    assert_published(loss, leaves | {"mixed": mixed}, PUBLISHED["mixskd"], PUBLISHED["mixskd"]["value"])
