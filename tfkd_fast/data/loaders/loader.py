"""Batches on the device, the same wherever their pixels come from."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tfkd_fast.data.augmentation import Augmentation, Views


class Batch(NamedTuple):
    """Consecutive images of an epoch, on the device."""

    images: Tensor  # (B,C,H,W), normalised, channels-last in memory
    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, of the images in the set that is loaded


class PixelSource(Protocol):
    """Where pixels come from: resident memory, worker processes."""

    name: str

    def pixels(self, batches: list[Views]) -> Iterator[Tensor]:
        """For each batch of views its pixels (B,C,H,W) uint8, on the device, channels-last in memory."""


class Loader:
    """Batches of an image set. Holds no position: an epoch is a function of (seed, epoch, stream)."""

    def __init__(
        self,
        source: PixelSource,
        labels: Tensor,
        image_shape: tuple[int, int, int],
        augmentation: Augmentation,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.name = source.name
        self.batch_size = batch_size
        self._source = source
        self._labels = labels.to(device)
        self._augmentation = augmentation
        self._device, self._dtype, self._seed = device, dtype, seed
        self._mean, self._std = (self._like_an_image(values, image_shape) for values in (mean, std))

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self._labels) // self.batch_size)

    def batch_sizes(self) -> list[int]:
        """Of each batch of an epoch: all the same but the last, which may be smaller."""
        return [len(batch) for batch in self._labels.split(self.batch_size)]

    def epoch(self, epoch: int, stream: int = 0) -> Iterator[Batch]:
        """Every image once, in random order, augmented; the last batch may be smaller. `epoch` counts from 0.

        `stream` tells apart candidates that are to see different orders and augmentations.
        """
        count = len(self._labels)
        views = self._augmentation.random_views(count, seed=self._seed, epoch=epoch, stream=stream, device=self._device)
        return self._load(views)

    def in_order(self) -> Iterator[Batch]:
        """Every image once, in the order of the set, as it is; the last batch may be smaller."""
        return self._load(self._augmentation.plain_views(len(self._labels), self._device))

    def _load(self, views: Views) -> Iterator[Batch]:
        batches = views.batches(self.batch_size)
        for batch, pixels in zip(batches, self._source.pixels(batches), strict=True):
            images = pixels.float().sub_(self._mean).div_(self._std).to(self._dtype)
            yield Batch(images, self._labels[batch.indices], batch.indices)

    def _like_an_image(self, values: tuple[float, ...], image_shape: tuple[int, int, int]) -> Tensor:
        """(1,C,H,W) channels-last, from one value a channel, in units of pixels: broadcasting (C,1,1) is far slower."""
        channels = torch.tensor([255 * value for value in values], device=self._device)
        image = channels.view(1, -1, 1, 1).expand(1, *image_shape)
        return image.contiguous(memory_format=torch.channels_last)
