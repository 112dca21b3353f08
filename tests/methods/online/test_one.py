"""The loss and gradient of ONE are those of the published code, and its ensemble grows."""

import math

import pytest
import torch

from tests.methods.published import CLASSES, PUBLISHED, assert_published, build, fill, outputs, with_features
from tfkd_fast.errors import UserError
from tfkd_fast.methods import Context, find_method
from tfkd_fast.methods.base import Interval
from tfkd_fast.methods.online.one import ONE
from tfkd_fast.models import FeatureShapes, feature_shapes
from tfkd_fast.models.mobilenet import mobilenetv2_half
from tfkd_fast.models.resnet import resnet8

SHAPES = FeatureShapes(((16, 8, 8), (32, 4, 4), (64, 2, 2)), 64)
ADDED = 1e-7
"""What the published code adds to every probability of a target."""


def test_the_loss_is_the_published_one() -> None:
    method = build("one", student=SHAPES, build_student=lambda seed: resnet8(CLASSES))
    tails, gate = method.adapters.children()
    fill(gate)
    for number, tail in enumerate(tails):
        fill(tail, 7 + 2 * number)
    leaves, batch = outputs()
    maps, batch = with_features(leaves, batch, student=SHAPES)
    given = {name: [tensor] for name, tensor in leaves.items()} | {"maps": [maps[1]]}
    logits = leaves["logits"]
    loss = method.loss(logits, batch)

    branches = [logits[0], *(tail(batch.need_features().after_relu[1][0])[0] for tail in tails)]
    shares = gate(batch.need_features().after_relu[1][0])
    ensemble = (torch.stack(branches, -1) * shares.unsqueeze(1)).sum(-1)
    ratios = [(ensemble / 3).log_softmax(1) - (branch / 3).log_softmax(1) for branch in branches]
    added = sum(9 * ADDED * (ratio + 1).sum(1).mean().item() for ratio in ratios)
    assert_published(loss.total, given, PUBLISHED["one"], PUBLISHED["one"]["value"] - added)
    assert loss.terms.keys() == {"label", "branches", "ensemble", "soft"}


def test_the_ensemble_grows_over_the_first_epochs() -> None:
    method = build("one", student=SHAPES, build_student=lambda seed: resnet8(CLASSES), loss={"rampup": 0.5})
    assert isinstance(method, ONE)
    factors = []
    for epoch in (0, 6, 11, 12, 23):  # of 24
        method.resume_interval(Interval(epoch, 1, 1))
        factors.append(float(method.rampup))
    assert factors == pytest.approx([math.exp(-5.0), math.exp(-5 / 4), math.exp(-5 / 144), 1.0, 1.0])


def test_networks_without_stages_to_run_apart_and_single_images_are_refused() -> None:
    network = mobilenetv2_half(CLASSES, width=0.5)
    with pytest.raises(UserError, match="MobileNetV2 has none that can be: choose a VGG or a residual network"):
        build("one", student=feature_shapes(network, (3, 32, 32)), build_student=lambda seed: network)
    entry = find_method("one")
    context = Context(5, 33, 4, 0, torch.device("cpu"), lambda epoch: 1.0, shapes=SHAPES, batch_size=8)
    with pytest.raises(UserError, match=r"a single one, .*choose another data.batch_size than 8"):
        entry.build(entry.settings(), context)
