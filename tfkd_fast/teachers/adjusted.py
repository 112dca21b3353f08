"""Networks around a teacher's: they show it images as in its training, and give logits in the student's order."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.models import FeatureName, FeatureNetwork, classifier_of, logits_and_features

EVERYTHING: tuple[FeatureName, ...] = ("stages", "stem", "block_sums")


class Adjusted(FeatureNetwork):
    """A network around another one, whose features it gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def classifier(self) -> nn.Module:  # type: ignore[override]
        """The layer that takes pooled features to the logits of this network."""
        return classifier_of(self.network)

    def adjust(self, images: Tensor) -> Tensor:
        """The images (B,C,H,W) as the inner network takes them."""
        return images

    def forward(self, images: Tensor, return_features: bool = False) -> Any:
        names = EVERYTHING if return_features else ()
        logits, features = logits_and_features(self.network, names, self.adjust(images))
        return (logits, features) if return_features else logits


class Restandardised(Adjusted):
    """A network that was trained with another normalisation: images are converted from the student's to its own."""

    factor: Tensor
    offset: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        own_mean: Sequence[float],
        own_std: Sequence[float],
    ) -> None:
        """`mean` and `std` are those of the student's images, the others those of the network's."""
        super().__init__(network)
        of_mean, of_std, to_mean, to_std = (
            torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std, own_mean, own_std)
        )
        self.register_buffer("factor", of_std / to_std)
        self.register_buffer("offset", (of_mean - to_mean) / to_std)

    def adjust(self, images: Tensor) -> Tensor:
        return (images.float() * self.factor + self.offset).to(images.dtype)


class Resized(Adjusted):
    """A network that was trained on images of another size: images are resized bilinearly, with antialiasing."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        """`size` is height and width of the network's images."""
        super().__init__(network)
        self.size = size

    def adjust(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images.float(), self.size, mode="bilinear", antialias=True)
        return resized.to(images.dtype).contiguous(memory_format=torch.channels_last)


class Reordered(Adjusted):
    """A network whose logits are reordered, because it was trained with another order of the same classes."""

    order: Tensor

    def __init__(self, network: nn.Module, order: Sequence[int]) -> None:
        super().__init__(network)
        self.register_buffer("order", torch.tensor(order))

    @property
    def classifier(self) -> nn.Module:  # type: ignore[override]
        """The layer that takes pooled features to the logits of this network."""
        return _ReorderedLayer(classifier_of(self.network), self.order).eval()

    def forward(self, images: Tensor, return_features: bool = False) -> Any:
        found = super().forward(images, return_features)
        return (found[0][..., self.order], found[1]) if return_features else found[..., self.order]


class _ReorderedLayer(nn.Module):
    """A classifier whose logits are reordered."""

    order: Tensor

    def __init__(self, layer: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("order", order)

    def forward(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.layer(pooled)[..., self.order]
        return logits


def is_own(network: nn.Module) -> bool:
    """Whether a network is one of this package, whatever is around it."""
    while isinstance(network, Adjusted):
        network = network.network
    return isinstance(network, FeatureNetwork)
