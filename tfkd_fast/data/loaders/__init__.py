"""Loaders by name: which of them can serve a set of images, and which is the fastest."""

import importlib.util
import math
import sys
import time
from dataclasses import dataclass
from itertools import chain, count

import torch

from tfkd_fast.data.augmentation import Augmentation
from tfkd_fast.data.datasets import Dataset
from tfkd_fast.data.images import ArrayImages, FileImages, ImageSet
from tfkd_fast.data.loaders.loader import Batch, DataStream, Loader, PixelSource
from tfkd_fast.data.loaders.resident import ResidentImages, ResidentPixels
from tfkd_fast.data.settings import DataSettings
from tfkd_fast.data.transforms import changes_at_random, make_transforms
from tfkd_fast.device import free_memory
from tfkd_fast.errors import UserError
from tfkd_fast.machine import available_cores

__all__ = ["Batch", "DataStream", "Loader", "LoaderChoice", "choose_loader", "make_loader", "missing_loaders"]

WORKERS_A_CORE = 8
"""The most workers for each core (our choice): more of them only take memory."""

NAMES = ("resident", "dali", "torchvision")
"""Names of all loaders."""

FEW_IMAGES = 10_000
"""Sets with fewer images are kept resident if they fit, without a measurement, which would take as long as an epoch."""

SAMPLE = 1024
"""Number of images that the resident loader is measured with: it reads its set at the start, and its speed does not
depend on the number."""

SECONDS = 0.25
"""Least duration of the measurement of a loader."""

LEAST_BATCHES = 8
"""Least number of batches of a measurement, so that batches that were prepared in advance do not dominate it."""

MOST_SECONDS = 0.75
"""Duration after which a measurement ends even with fewer batches."""


@dataclass(frozen=True)
class LoaderChoice:
    """The result of `choose_loader`."""

    chosen: str
    """Name of the fastest loader."""
    images_per_second: dict[str, float]
    """Measured throughput by loader name; empty if nothing was measured."""
    refused: dict[str, str]
    """Reason by the name of each loader that cannot serve."""


def make_loader(
    images: ImageSet,
    dataset: Dataset,
    settings: DataSettings,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> Loader:
    """Build the loader that the settings name, or the fastest one for "auto".

    Args:
        images: the images to load, a part of `dataset`.
        dataset: gives the normalisation, and whether images may be mirrored.
        settings: the `[data]` table of a recipe.
        device: the device of the batches.
        dtype: floating-point dtype of the batches' images.
        seed: seed of order and augmentation.

    Raises:
        UserError: the named loader cannot serve.
        ValueError: the dtype is no floating-point type.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}")
    if settings.loader == "auto":
        name = choose_loader(images, dataset, settings, device, dtype, seed).chosen
        settings = settings.model_copy(update={"loader": name})
    augmentation = _augmentation(images, dataset, settings)
    return Loader(
        _source(images, augmentation, settings, device),
        images.labels,
        augmentation,
        batch_size=settings.batch_size,
        mean=dataset.mean,
        std=dataset.std,
        device=device,
        dtype=dtype,
        seed=seed,
    )


def choose_loader(
    images: ImageSet,
    dataset: Dataset,
    settings: DataSettings,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> LoaderChoice:
    """Choose the fastest loader of `images` on this machine by a short measurement; arguments as for `make_loader`.

    Images are kept resident only if they take no more than half of the device's free memory.
    """
    reasons = {name: _refusal(settings, name, images, device, share=0.5) for name in NAMES}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    able = [name for name in NAMES if name not in refused]
    if len(images) < FEW_IMAGES or len(able) == 1:
        return LoaderChoice(able[0], {}, refused)
    speeds = {}
    for name in able:
        sample = images.subset(torch.arange(min(len(images), SAMPLE))) if name == "resident" else images
        loader = make_loader(sample, dataset, settings.model_copy(update={"loader": name}), device, dtype, seed)
        speeds[name] = _images_per_second(loader, device)
    return LoaderChoice(max(speeds, key=speeds.__getitem__), speeds, refused)


def missing_loaders() -> dict[str, str | None]:
    """Return, by loader name, why the loader cannot be used in this installation, or None if it can."""
    return {name: _missing_dali() if name == "dali" else None for name in NAMES}


def _augmentation(images: ImageSet, dataset: Dataset, settings: DataSettings) -> Augmentation:
    if not settings.augment:
        return Augmentation(0, flip=False)
    pad = Augmentation.standard(images.image_shape[1], dataset.flip).pad if settings.crop == "padded" else 0
    return Augmentation(pad, dataset.flip, make_transforms(settings, dataset.mean))


def _source(
    images: ImageSet, augmentation: Augmentation, settings: DataSettings, device: torch.device
) -> ResidentImages | PixelSource:
    name = settings.loader
    reason = _refusal(settings, name, images, device)
    if reason is not None:
        raise UserError(f"loader {name} {reason}")
    most = WORKERS_A_CORE * available_cores()
    if settings.workers > most:
        raise UserError(f"data.workers is {settings.workers}, more than this machine can serve: set {most} at most")
    if name == "dali":
        from tfkd_fast.data.loaders.dali import DaliPixels  # may not be installed

        return DaliPixels(images, augmentation, device, batch_size=settings.batch_size, workers=settings.workers)
    if name == "torchvision":
        from tfkd_fast.data.loaders.torchvision import TorchvisionPixels  # torchvision takes a second to import

        return TorchvisionPixels(images, augmentation, device, settings.workers)
    return ResidentPixels(images, augmentation) if augmentation.transforms else ResidentImages(images, device)


def _refusal(settings: DataSettings, name: str, images: ImageSet, device: torch.device, share: float = 1) -> str | None:
    """Return why a loader cannot serve with `share` of the free memory, as the end of a sentence about it, or None."""
    changes = changes_at_random(settings)
    if name == "resident":
        if changes and device.type != "cpu":
            return "keeps images on the GPU, where none is changed on its own: use --loader torchvision or dali"
        if changes and settings.crop == "resized" and not isinstance(images, ArrayImages):
            return (
                "keeps images of their final size, and data.crop cuts parts out of whole ones: use --loader torchvision"
            )
        needed, free = len(images) * math.prod(images.image_shape), share * free_memory(device)
        if needed > free:
            return (
                f"needs {needed / 2**30:.1f} GiB on {device.type}, where {free / 2**30:.1f} GiB are free: "
                "use --loader torchvision"
            )
    if name == "dali":
        if not isinstance(images, ArrayImages | FileImages):
            return "reads files and arrays only: use --loader torchvision"
        if changes and images.image_shape[0] != 3:
            return "changes colours of RGB images only: use --loader torchvision"
        return _missing_dali()
    return None


def _missing_dali() -> str | None:
    if sys.platform != "linux":
        return "needs NVIDIA DALI, which runs on Linux only"
    if not (importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")):
        return "needs NVIDIA DALI: pip install 'tfkd-fast[dali]'"
    return None


def _images_per_second(loader: Loader, device: torch.device) -> float:
    """Measure the throughput of a loader after one uncounted batch, which includes what is done only once."""

    def seconds() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    batches = chain.from_iterable(loader.epoch(epoch) for epoch in count())
    next(batches)
    started = time.perf_counter()
    images = taken = 0
    while (taken < LEAST_BATCHES or seconds() < SECONDS) and seconds() < MOST_SECONDS:
        images += len(next(batches).labels)
        taken += 1
    return images / seconds()
