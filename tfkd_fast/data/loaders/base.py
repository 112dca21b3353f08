"""What every loader offers: batches on the device, the same from each of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tfkd_fast.data.augmentation import Augmentation, Views
from tfkd_fast.data.datasets import Dataset
from tfkd_fast.data.images import ImageSet


class Batch(NamedTuple):
    """Consecutive images of an epoch, on the device."""

    images: Tensor  # (B,C,H,W), normalised, channels-last in memory
    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, of the images in the set that is loaded


class Loader(ABC):
    """Batches of an image set. Holds no position: an epoch is a function of (seed, epoch, stream)."""

    name: ClassVar[str]

    def __init__(
        self,
        images: ImageSet,
        dataset: Dataset,
        *,
        batch_size: int,
        augmentation: Augmentation,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.batch_size = batch_size
        self._augmentation = augmentation
        self._device, self._dtype, self._seed = device, dtype, seed
        self._labels = images.labels.to(device)
        # in the units of the pixels, 0 .. 255
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float64).mul(255).float().view(1, -1, 1, 1).to(device)
            for values in (dataset.mean, dataset.std)
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self._labels) // self.batch_size)

    def epoch(self, epoch: int, stream: int = 0) -> Iterator[Batch]:
        """Every image once, in random order, augmented; the last batch may be smaller. `epoch` counts from 0.

        `stream` tells apart candidates that are to see different orders and augmentations.
        """
        return self._batches(
            self._augmentation.random_views(
                len(self._labels), seed=self._seed, epoch=epoch, stream=stream, device=self._device
            )
        )

    def in_order(self) -> Iterator[Batch]:
        """Every image once, in the order of the set, as it is."""
        return self._batches(self._augmentation.plain_views(len(self._labels), self._device))

    def _batches(self, views: Views) -> Iterator[Batch]:
        for batch, pixels in self._pixels(views):
            images = pixels.float().sub_(self._mean).div_(self._std).to(self._dtype)
            yield Batch(images, self._labels[batch.indices], batch.indices)

    @abstractmethod
    def _pixels(self, views: Views) -> Iterator[tuple[Views, Tensor]]:
        """The views, a batch at a time, with their pixels (B,C,H,W) uint8 on the device, channels-last in memory."""
