"""The table of data sets by name, and how one is opened."""

from collections.abc import Callable

from tfkd_fast.data.datasets.base import Dataset
from tfkd_fast.data.datasets.digits import open_digits
from tfkd_fast.data.datasets.few_images import FewImages
from tfkd_fast.data.datasets.folder import open_folder
from tfkd_fast.data.datasets.identity import DataIdentity
from tfkd_fast.data.datasets.npz import open_npz
from tfkd_fast.data.datasets.seal import ImagesSealed, sealed_test_images
from tfkd_fast.data.datasets.some_classes import SomeClasses, find_labels
from tfkd_fast.data.datasets.torchvision_files import open_cifar, open_svhn
from tfkd_fast.data.settings import DataSettings
from tfkd_fast.errors import UserError, nearest

__all__ = ["DATASETS", "DataIdentity", "Dataset", "ImagesSealed", "find_labels", "open_dataset", "sealed_test_images"]

DATASETS: dict[str, Callable[[DataSettings, bool], Dataset]] = {
    "digits": open_digits,
    "cifar10": open_cifar,
    "cifar100": open_cifar,
    "svhn": open_svhn,
    "npz": open_npz,
    "folder": open_folder,
}


def open_dataset(settings: DataSettings, download: bool = False) -> Dataset:
    """Open the data set of a recipe; files are checked as far as possible without reading images.

    Args:
        settings: the `[data]` table of the recipe.
        download: whether to fetch a data set of torchvision's if its files are missing.

    Raises:
        UserError: the name is unknown, or files are missing or unusable.
    """
    if settings.dataset not in DATASETS:
        raise UserError(f"unknown data set {settings.dataset!r}: {nearest(settings.dataset, DATASETS)}")
    dataset = DATASETS[settings.dataset](settings, download)
    if settings.per_class is not None:
        dataset = FewImages(dataset, settings.per_class)
    if settings.classes is not None:
        dataset = SomeClasses(dataset, find_labels(settings.classes, dataset.classes, "data.classes"))
    if settings.flip is not None:
        dataset.flip = settings.flip
    return dataset
