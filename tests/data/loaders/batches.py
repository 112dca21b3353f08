"""Small random data sets, and the batches that loaders make of them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from tfkd_fast.data import Batch, Dataset, DataSettings, Loader, make_loader
from tfkd_fast.data.images import ArrayImages

CPU = torch.device("cpu")
SHAPES = [(3, 32, 32), (1, 32, 32), (3, 64, 64), (1, 64, 64)]
COUNT = 23  # a prime: the last batch is smaller


def dataset_of(shape: tuple[int, int, int], flip: bool = True) -> Dataset:
    """Random images, two classes."""
    pixels = np.random.default_rng(sum(shape)).integers(0, 256, (COUNT, *shape), dtype=np.uint8)
    images = ArrayImages(torch.from_numpy(pixels), torch.arange(COUNT) % 2)
    return Dataset("random", ["a", "b"], shape, flip=flip, read_train=lambda: images, read_test=lambda: images)


def data_settings(loader: str, **values: Any) -> DataSettings:
    """The `[data]` table for a loader; the resident one has no workers."""
    if loader == "resident":
        values.pop("workers", None)
    return DataSettings(**({"loader": loader} | values))


def loader_of(
    dataset: Dataset, loader: str, *, seed: int = 5, dtype: torch.dtype = torch.float32, **change: Any
) -> Loader:
    settings = data_settings(loader, **({"batch_size": 5, "workers": 0} | change))
    return make_loader(dataset.read_train(), dataset, settings, CPU, dtype, seed)


def collect(batches: Iterable[Batch]) -> Batch:
    return Batch(*(torch.cat(column) for column in zip(*batches, strict=True)))


def assert_same(first: Iterable[Batch], second: Iterable[Batch]) -> None:
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


def normalised(pixels: np.ndarray, dataset: Dataset) -> torch.Tensor:
    """As torchvision does it."""
    image = v2.functional.to_dtype(torch.from_numpy(np.ascontiguousarray(pixels)), torch.float32, scale=True)
    return v2.functional.normalize(image, list(dataset.mean), list(dataset.std))
