"""A DataLoader whose workers read and transform image by image: for sets that do not fit on the device."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from tfkd_fast.data.augmentation import Augmentation, Views
from tfkd_fast.data.images import ImageSet
from tfkd_fast.data.loaders.base import Loader
from tfkd_fast.errors import UserError

View = tuple[int, int, int, bool]  # a row of Views


class TorchvisionLoader(Loader):
    """Worker processes make batches of pixels; the device normalises them."""

    name = "torchvision"

    def __init__(
        self, images: ImageSet, *arguments: Any, augmentation: Augmentation, workers: int, **options: Any
    ) -> None:
        super().__init__(images, *arguments, augmentation=augmentation, **options)
        self._batches_of_pixels = PixelBatches(images, augmentation.pad)
        self._workers = workers

    def _pixels(self, views: Views) -> Iterator[tuple[Views, Tensor]]:
        batches = list(views.batches(self.batch_size))
        loader = DataLoader(
            self._batches_of_pixels,
            batch_size=None,  # the sampler's items are whole batches
            sampler=[list(zip(*(column.tolist() for column in batch), strict=True)) for batch in batches],
            num_workers=self._workers,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # a DataLoader seeds its workers, by default from the global random state
        )
        for batch, pixels in zip(batches, loader, strict=True):
            if isinstance(pixels, UserError):
                raise pixels
            on_device = pixels.to(self._device, non_blocking=True)
            yield batch, on_device.contiguous(memory_format=torch.channels_last)


class PixelBatches(Dataset[Tensor | UserError]):
    """Views of images, a batch at a time."""

    def __init__(self, images: ImageSet, pad: int) -> None:
        self._images, self._pad = images, pad

    def __getitem__(self, views: list[View]) -> Tensor | UserError:
        """(B,C,H,W) uint8. An error is handed over, since raised in a worker it would come back as a traceback."""
        try:
            return torch.stack([self._view(*view) for view in views])
        except UserError as error:
            return error

    def _view(self, index: int, top: int, left: int, mirrored: bool) -> Tensor:
        _, height, width = self._images.image_shape
        padded = functional.pad(self._images.image(index), [self._pad])
        window = functional.crop(padded, top, left, height, width)
        return functional.horizontal_flip(window) if mirrored else window
