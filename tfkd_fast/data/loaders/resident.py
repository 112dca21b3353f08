"""Images that are resident on the device: `ops.augment` makes a batch of them in one pass."""

import torch

from tfkd_fast.data.images import ImageSet


class ResidentImages:
    """A whole image set on the device, as `images` (N,H,W,C) uint8 with the channels of a pixel side by side."""

    name = "resident"

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        # rearranged before they are copied: the device holds them once
        self.images = images.all_images().permute(0, 2, 3, 1).contiguous().to(device)
