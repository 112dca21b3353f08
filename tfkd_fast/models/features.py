"""The features that a network gives, for methods that distil them."""

from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

FeatureName = Literal["stages", "stem", "block_sums"]
"""Names of the features that a method may ask for; `Features.pooled` comes with any of them."""


class Features(NamedTuple):
    """Inner representations of a network, for methods that distil them.

    The maps of a stage are what its last ReLU takes and gives, before pooling. Stages of different networks go together
    by the size of their maps: of 32x32 images those of a VGG are 32, 16, 8, 4 and 4 pixels wide, those of a residual
    network 32, 16 and 8, so that the first three of each are pairs; of images twice that size, too.

    RepDistiller (Tian et al., 2020) calls the maps of a network feat_f and ends the list with `pooled`. For a VGG the
    maps are `after_relu`. For a ResNet they are `stem` and `after_relu`. For a wide residual network, which normalises
    and activates before a convolution, they are `stem` and `block_sums`, and so they are for MobileNetV2 and
    ShuffleNetV2, whose last stage ends with one convolution more. Its `preact=True` gives `before_relu` in place of the
    maps of stages, for every network but MobileNetV2, where it changes nothing, and ShuffleNetV2, whose channels it
    gives in the order before the last shuffle.
    """

    before_relu: Sequence[Tensor]
    """One (B, width, H, W) for each stage; () unless "stages" was asked for, like `after_relu`. Where a stage ends
    without a ReLU, both are the map that it ends with."""
    after_relu: Sequence[Tensor]
    pooled: Tensor
    """(B, width of the last stage): the averaged last map, which the classifier takes."""
    stem: Tensor | None = None
    """(B, width, H, W), the map that the first stage of a network of blocks takes: that of its first convolution, in a
    wide residual network as it is, in the others after batch norm and ReLU. None for a VGG, which begins with its first
    stage, and unless it was asked for."""
    block_sums: Sequence[Tensor] = ()
    """One (B, width, H, W) for each stage of a network of blocks: the map that its last block ends with, before
    anything is done to it. In a ResNet and in ShuffleNetV1 that is `before_relu`; a wide residual network normalises it
    before the ReLU, as a part of what follows. () for a VGG, and unless it was asked for."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """The features with `change` applied to each tensor."""
        stem = None if self.stem is None else change(self.stem)
        before, after, sums = ([change(part) for part in parts] for parts in self._maps())
        return Features(before, after, change(self.pooled), stem, sums)

    def only(self, names: Collection[FeatureName]) -> "Features":
        """The pooled features and those that are named."""
        return Features(
            self.before_relu if "stages" in names else (),
            self.after_relu if "stages" in names else (),
            self.pooled,
            self.stem if "stem" in names else None,
            self.block_sums if "block_sums" in names else (),
        )

    def in_float32(self) -> "Features":
        """The same features in float32. A map of a stage is converted when it is first read, and once: gradients of
        several readers are summed in float32."""
        before, after, sums = (Float32Maps(parts) for parts in self._maps())
        stem = None if self.stem is None else self.stem.float()
        return Features(before, after, self.pooled.float(), stem, sums)

    def as_computed(self) -> "Features":
        """The same features with all maps in the dtype in which the network computed them, for layers that compute in
        that dtype, too; what they give is converted to float32 before a loss is made of it."""
        before, after, sums = (parts.as_computed if isinstance(parts, Float32Maps) else parts for parts in self._maps())
        computed = next(iter([*before, *sums]), self.pooled).dtype
        stem = None if self.stem is None else self.stem.to(computed)  # exact: its values are of that dtype
        return Features(before, after, self.pooled, stem, sums)

    @classmethod
    def stack(cls, several: Sequence["Features"]) -> "Features":
        """The features of n networks with an axis of n in front."""
        first = several[0]
        before, after, sums = (
            [stack(maps) for maps in zip(*parts, strict=True)]
            for parts in zip(*(features._maps() for features in several), strict=True)
        )
        stems = [features.stem for features in several if features.stem is not None]
        pooled = stack([features.pooled for features in several])
        return cls(before, after, pooled, None if first.stem is None else stack(stems), sums)

    def _maps(self) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        return self.before_relu, self.after_relu, self.block_sums


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """The n tensors as one (n,...); of one tensor no copy is made."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


class Float32Maps(Sequence[Tensor]):
    """Maps in float32, each of which is converted when it is first read."""

    def __init__(self, maps: Sequence[Tensor]) -> None:
        self.as_computed = maps
        self._converted: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.as_computed)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self[place] for place in places]
        if places not in self._converted:
            self._converted[places] = self.as_computed[places].float()
        return self._converted[places]


class FeatureNetwork(nn.Module):
    """A network that gives its features itself."""

    classifier: nn.Linear
    """The layer that takes `Features.pooled` to the logits."""

    @overload
    def forward(self, images: Tensor, return_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, return_features: Literal[True]) -> tuple[Tensor, Features]: ...
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Return logits (B, num_classes) of images (B, in_channels, H, W), with all features on request."""
        raise NotImplementedError


class FeatureShapes(NamedTuple):
    """The shapes of the features of one image."""

    maps: tuple[tuple[int, int, int], ...]
    """Channels, height and width of the maps of each stage, which are the same before and after ReLU."""
    pooled: int
    stem: tuple[int, int, int] | None = None
    """None for a network without a stem apart from its first stage."""
    block_sums: tuple[tuple[int, int, int], ...] = ()
    """One for each stage of a network of blocks."""
    linear: tuple[int, ...] = ()
    """The numbers of the stages that end without a ReLU."""


def shape_of(maps: Tensor) -> tuple[int, int, int]:
    """Channels, height and width of maps (B,C,H,W)."""
    _, channels, height, width = maps.shape
    return int(channels), int(height), int(width)
