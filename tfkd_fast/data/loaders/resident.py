"""The whole image set on the device: a batch is one gather."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tfkd_fast.data.augmentation import Views
from tfkd_fast.data.images import ImageSet


class ResidentPixels:
    """Keeps the images as uint8, padded, the channels of a pixel side by side."""

    name = "resident"

    def __init__(self, images: ImageSet, pad: int, device: torch.device) -> None:
        channels, height, width = images.image_shape
        padded = torch.zeros(padded_shape(images, pad), dtype=torch.uint8, device=device)
        padded[:, pad : pad + height, pad : pad + width] = images.all_images().permute(0, 2, 3, 1).to(device)
        # every run of `width` pixels, each a row of a view that takes no memory: copying rows is several times faster
        # than copying windows out of a view of all windows
        self._runs = padded.flatten().unfold(0, width * channels, channels)
        self._shape, self._padded_shape = (height, width, channels), padded.shape
        self._rows = torch.arange(height, device=device)

    def pixels(self, batches: list[Views]) -> Iterator[Tensor]:
        _, padded_height, padded_width, _ = self._padded_shape
        for batch in batches:
            first_row = batch.indices * padded_height + batch.top
            runs = (first_row[:, None] + self._rows) * padded_width + batch.left[:, None]
            images = self._runs.index_select(0, runs.flatten()).view(-1, *self._shape).permute(0, 3, 1, 2)
            yield torch.where(batch.mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def padded_shape(images: ImageSet, pad: int) -> tuple[int, int, int, int]:
    """(N,H,W,C) of the memory that holds a set, one byte an element."""
    channels, height, width = images.image_shape
    return len(images), height + 2 * pad, width + 2 * pad, channels
