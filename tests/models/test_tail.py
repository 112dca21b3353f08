"""The last stages of a network, run apart, give what the network gives."""

import pytest
import torch

from tfkd_fast.errors import UserError
from tfkd_fast.models import MODELS, feature_shapes
from tfkd_fast.models.tail import Tail

CLASSES = 5


@pytest.mark.parametrize(
    ("name", "size"), [("vgg8", 32), ("vgg8", 64), ("resnet20", 32), ("resnet50", 32), ("wrn_16_1", 32)]
)
def test_a_tail_goes_on_as_its_network_does(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = MODELS[name](CLASSES, width=0.125).train()
    images = torch.randn(4, 3, size, size)
    logits, features = network(images, return_features=True)
    shapes = feature_shapes(network, (3, size, size))
    for first in range(1, len(shapes.maps)):
        tail = Tail(network, shapes, first)
        of_tail, maps = tail(features.after_relu[first - 1])
        torch.testing.assert_close(of_tail, logits, rtol=1e-4, atol=1e-5)  # sums in another order
        torch.testing.assert_close(maps, features.after_relu[-1], rtol=1e-4, atol=1e-5)
        own = {id(parameter) for parameter in network.parameters()}
        assert {id(parameter) for parameter in tail.parameters()} < own


def test_stages_that_cannot_be_run_apart_are_refused() -> None:
    network = MODELS["shufflenetv2"](CLASSES, width=0.5)
    with pytest.raises(UserError, match="ShuffleNet has none that can be: choose a VGG or a residual network"):
        Tail(network, feature_shapes(network, (3, 32, 32)), 1)
