"""Images that are resident on the device: `ops.augment` makes a batch of them in one pass."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tfkd_fast.data.augmentation import Augmentation, Views
from tfkd_fast.data.images import ArrayImages, ImageSet


class ResidentImages:
    """A whole image set on the device, as `images` (N,H,W,C) uint8 with the channels of a pixel side by side."""

    name = "resident"

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        # rearranged before they are copied: the device holds them once
        self.images = images.all_images().permute(0, 2, 3, 1).contiguous().to(device)


class ResidentPixels:
    """A `PixelSource` of images in memory that this process changes one by one, as the torchvision loader does."""

    name = "resident"

    def __init__(self, images: ImageSet, augmentation: Augmentation) -> None:
        from tfkd_fast.data.loaders.torchvision import TorchvisionPixels  # torchvision takes a second to import

        in_memory = ArrayImages(images.all_images(), images.labels)
        self._source = TorchvisionPixels(in_memory, augmentation, torch.device("cpu"), workers=0)

    def pixels(self, batches: list[Views]) -> Iterator[Tensor]:
        """Yield the pixels of each batch, see `PixelSource.pixels`."""
        return self._source.pixels(batches)
