"""The last stages of a network as a network of their own: another end for the stages before them."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.errors import UserError
from tfkd_fast.models.features import FeatureShapes
from tfkd_fast.models.layers import average_pool
from tfkd_fast.models.residual import ResidualNetwork, run_blocks
from tfkd_fast.models.vgg import VGG


class Tail(nn.Module):
    """The stages of a VGG or a residual network from one on, and its classifier."""

    def __init__(self, network: nn.Module, shapes: FeatureShapes, first: int) -> None:
        """
        Args:
            network: what the layers are taken of; they are not copied.
            shapes: the shapes of its features.
            first: the number of the first stage that is taken, 1 or more.

        Raises:
            UserError: the stages of the network cannot be run apart.
        """
        super().__init__()
        if not isinstance(network, VGG | ResidualNetwork):
            raise UserError(
                f"this method runs the last stages of a network apart, and {type(network).__name__} has none that can "
                "be: choose a VGG or a residual network as the model"
            )
        self.stages, self.classifier = network.stages[first:], network.classifier
        heights = [height for _, height, _ in shapes.maps[first - 1 :]]
        pools = isinstance(network, VGG)  # between stages; blocks have strides
        self._pools = [pools and after < before for before, after in pairwise(heights)]

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,K) and the last map (B,D,h,w) after ReLU, of the map (B,C,H,W) after ReLU of the stage before."""
        for stage, pool in zip(self.stages, self._pools, strict=True):
            if isinstance(stage, nn.ModuleList):
                _, maps = run_blocks(stage, maps, maps)  # the first block changes the channels, and reads no sum
            else:
                maps = stage(F.max_pool2d(maps, 2) if pool else maps, activate=True)
        return self.classifier(average_pool(maps)), maps
