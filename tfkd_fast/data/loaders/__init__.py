"""Loaders by name, and which one serves."""

import math
import os
import re
from pathlib import Path

import torch

from tfkd_fast.data.augmentation import Augmentation
from tfkd_fast.data.datasets import Dataset
from tfkd_fast.data.images import ImageSet
from tfkd_fast.data.loaders.loader import Batch, Loader, PixelSource
from tfkd_fast.data.loaders.resident import ResidentImages
from tfkd_fast.data.settings import DataSettings
from tfkd_fast.errors import UserError

__all__ = ["Batch", "Loader", "make_loader"]


def make_loader(
    images: ImageSet,
    dataset: Dataset,
    settings: DataSettings,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> Loader:
    """A loader of `images`, a part of `dataset`; batches come as `dtype` (float32, bfloat16, ...) on `device`.

    `auto` keeps the images on the device if they take no more than half of its free memory.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}")
    augmentation = (
        Augmentation.usual(images.image_shape[1], dataset.flip) if settings.augment else Augmentation(0, flip=False)
    )
    return Loader(
        _pixel_source(images, augmentation.pad, settings, device),
        images.labels,
        augmentation,
        batch_size=settings.batch_size,
        mean=dataset.mean,
        std=dataset.std,
        device=device,
        dtype=dtype,
        seed=seed,
    )


def _pixel_source(
    images: ImageSet, pad: int, settings: DataSettings, device: torch.device
) -> ResidentImages | PixelSource:
    needed, free = len(images) * math.prod(images.image_shape), free_memory(device)
    if settings.loader == "resident" and needed > free:
        raise UserError(
            f"loader resident needs {needed / 2**30:.1f} GiB on {device.type}, where {free / 2**30:.1f} GiB are free: "
            "use --loader torchvision"
        )
    if settings.loader == "torchvision" or (settings.loader == "auto" and needed > free / 2):
        from tfkd_fast.data.loaders.torchvision import TorchvisionPixels  # torchvision takes a second to import

        return TorchvisionPixels(images, pad, device, settings.workers)
    return ResidentImages(images, device)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device; for the CPU what Linux calls available, elsewhere all memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        kibibytes = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        kibibytes = None
    return 1024 * int(kibibytes[1]) if kibibytes else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
