"""The table of data sets by name, and how one is opened."""

from collections.abc import Callable
from typing import Any

from tfkd_fast.data.datasets import torchvision_sets
from tfkd_fast.data.datasets.base import Dataset
from tfkd_fast.data.datasets.digits import open_digits
from tfkd_fast.data.datasets.few_images import FewImages
from tfkd_fast.data.datasets.folder import open_folder
from tfkd_fast.data.datasets.identity import DataIdentity
from tfkd_fast.data.datasets.imagenet import open_imagenet, open_tiny_imagenet
from tfkd_fast.data.datasets.npz import open_npz
from tfkd_fast.data.datasets.pairs import HUB, make_pair_dataset, open_hub
from tfkd_fast.data.datasets.seal import ImagesSealed, sealed_test_images
from tfkd_fast.data.datasets.shards import open_shards
from tfkd_fast.data.datasets.some_classes import SomeClasses, find_labels
from tfkd_fast.data.datasets.torchvision_files import open_cifar, open_svhn
from tfkd_fast.data.settings import FROM_PROGRAM, DataSettings
from tfkd_fast.errors import UserError, nearest
from tfkd_fast.plugins import Registry

__all__ = ["DATASETS", "DataIdentity", "Dataset", "ImagesSealed", "find_labels", "open_dataset", "sealed_test_images"]

_OWN: dict[str, Callable[[DataSettings, bool], Dataset]] = {
    "digits": open_digits,
    "cifar10": open_cifar,
    "cifar100": open_cifar,
    "svhn": open_svhn,
    "npz": open_npz,
    "folder": open_folder,
    "webdataset": open_shards,
    "imagenet": open_imagenet,
    "tiny-imagenet": open_tiny_imagenet,
    **dict.fromkeys(torchvision_sets.FILES, torchvision_sets.open_files),
    **dict.fromkeys(torchvision_sets.ARRAYS, torchvision_sets.open_arrays),
}

DATASETS = Registry("data set", "tfkd_fast.datasets", Callable, "function that opens it", _OWN)
"""Functions that open a data set, by its name: from the `[data]` table, and whether files may be downloaded. Those of
this package, then those of other distributions."""


def open_dataset(settings: DataSettings, download: bool = False, pairs: Any = None) -> Dataset:
    """Open the data set of a recipe; files are checked as far as possible without reading images.

    Args:
        settings: the `[data]` table of the recipe.
        download: whether to fetch a data set of torchvision's or Hugging Face's if its files are missing.
        pairs: what a program gives for the data set "python", see `pairs.make_pair_dataset`; None for the others.

    Raises:
        UserError: the name is unknown, or files are missing or unusable.
    """
    if pairs is not None:
        dataset = make_pair_dataset(FROM_PROGRAM, pairs, settings)
    elif settings.dataset.startswith(HUB):
        dataset = open_hub(settings, download)
    elif settings.dataset == FROM_PROGRAM:
        raise UserError("the data set of this recipe is given from Python: call tfkd_fast with dataset=...")
    elif settings.dataset in DATASETS:
        dataset = DATASETS[settings.dataset](settings, download)
        if not isinstance(dataset, Dataset):
            raise UserError(f"data set {settings.dataset!r} opens as a {type(dataset).__name__}, not as a Dataset")
    else:
        raise UserError(f"unknown data set {settings.dataset!r}: {nearest(settings.dataset, DATASETS)}")
    if settings.per_class is not None:
        dataset = FewImages(dataset, settings.per_class)
    if settings.classes is not None:
        dataset = SomeClasses(dataset, find_labels(settings.classes, dataset.classes, "data.classes"))
    if settings.flip is not None:
        dataset.flip = settings.flip
    return dataset
