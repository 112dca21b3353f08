"""The whole image set on the device: a batch is one indexing operation."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tfkd_fast.data.augmentation import Augmentation, Views
from tfkd_fast.data.images import ImageSet
from tfkd_fast.data.loaders.base import Loader


class ResidentLoader(Loader):
    """Keeps the images padded, as uint8, with the channels of a pixel side by side."""

    name = "resident"

    def __init__(self, images: ImageSet, *arguments: Any, augmentation: Augmentation, **options: Any) -> None:
        super().__init__(images, *arguments, augmentation=augmentation, **options)
        _, height, width = images.image_shape
        padded = torch.zeros(padded_shape(images, augmentation.pad), dtype=torch.uint8, device=self._device)
        inside = padded[:, augmentation.pad :, augmentation.pad :][:, :height, :width]
        inside.copy_(images.all_images().permute(0, 2, 3, 1))
        # (N, places, places, H, W, C): every window of every image, a view of `padded`
        self._windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)

    def _pixels(self, views: Views) -> Iterator[tuple[Views, Tensor]]:
        for batch in views.batches(self.batch_size):
            pixels = self._windows[batch.indices, batch.top, batch.left].permute(0, 3, 1, 2)
            yield batch, torch.where(batch.mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def padded_shape(images: ImageSet, pad: int) -> tuple[int, int, int, int]:
    """(N,H,W,C) of the memory that holds a set; one byte an element."""
    channels, height, width = images.image_shape
    return len(images), height + 2 * pad, width + 2 * pad, channels
