"""Data sets that torchvision knows by name and finds in their official layouts, by one table.

torchvision finds the files, labels and class names, and downloads what may be downloaded; the images are read here, as
those of a folder are, so that every loader, decoder and fingerprint is the same. None of these data sets is a pickle.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tfkd_fast.data.datasets.base import ChannelStatistics, Dataset
from tfkd_fast.data.datasets.folder import FolderParts, Listing, make_file_dataset, split_listing
from tfkd_fast.data.datasets.identity import class_name
from tfkd_fast.data.images import ArrayImages
from tfkd_fast.data.settings import DEFAULT_ROOT, DataSettings
from tfkd_fast.errors import UserError, printable
from tfkd_fast.files import fault_of

IMAGENET = ChannelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Statistics of ImageNet, which the field normalises other photographs by, too; no image is read to compute them."""

Arguments = Mapping[str, Any]
Sample = tuple[str | Path, int]
"""The file and the label of an image."""


@dataclass(frozen=True)
class ImageFiles:
    """How a data set of image files is opened."""

    source: str
    """Name of its class in torchvision.datasets."""
    train: Sequence[Arguments] = ({"split": "train"},)
    """Arguments of the class for each part of the training images."""
    test: Arguments | None = None
    """Arguments for the test images; None for a data set without any, which is split."""
    samples: Callable[[Any], Iterable[Sample]] = lambda part: part._samples
    """Returns the files and labels of a part."""
    flip: bool = True
    """Whether a mirrored image still shows its class."""


@dataclass(frozen=True)
class Arrays:
    """How a data set of images in arrays is opened."""

    source: str
    """Name of its class in torchvision.datasets."""
    train: Arguments
    """Arguments of the class for the training images."""
    test: Arguments
    """Arguments for the test images."""
    size: int
    """Pixels a side of every image."""
    channels: int
    """Number of channels of the images."""
    flip: bool
    """Whether a mirrored image still shows its class."""
    statistics: ChannelStatistics | None = None
    """The usual constants of the field; None to compute them from the training images."""


def _of_attributes(files: str, labels: str) -> Callable[[Any], Iterable[Sample]]:
    """Return a function that pairs two attributes of a part."""
    return lambda part: zip(getattr(part, files), getattr(part, labels), strict=True)


def _caltech(folder: str, name: str) -> Callable[[Any], Iterable[Sample]]:
    """Return a function that names the files of Caltech as torchvision does.

    Args:
        folder: the folder of all classes.
        name: the format of a file's name, by the label counted from 1 and the number of the image.
    """
    return lambda part: (
        (Path(part.root, folder, part.categories[label], name.format(label + 1, number)), label)
        for label, number in zip(part.y, part.index, strict=True)
    )


TEST: Arguments = {"split": "test"}
WITH_VALIDATION = ({"split": "train"}, {"split": "val"})
BY_LISTS = _of_attributes("_image_files", "_labels")

FILES = {
    "aircraft": ImageFiles("FGVCAircraft", ({"split": "trainval"},), TEST, BY_LISTS),
    "caltech101": ImageFiles("Caltech101", ({},), samples=_caltech("101_ObjectCategories", "image_{1:04d}.jpg")),
    "caltech256": ImageFiles("Caltech256", ({},), samples=_caltech("256_ObjectCategories", "{0:03d}_{1:04d}.jpg")),
    "cars": ImageFiles("StanfordCars", test=TEST),
    "country211": ImageFiles("Country211", ({"split": "train"}, {"split": "valid"}), TEST, lambda part: part.samples),
    "dtd": ImageFiles("DTD", WITH_VALIDATION, TEST, BY_LISTS),
    "eurosat": ImageFiles("EuroSAT", ({},), samples=lambda part: part.samples),
    "flowers102": ImageFiles("Flowers102", WITH_VALIDATION, TEST, BY_LISTS),
    "food101": ImageFiles("Food101", test=TEST, samples=BY_LISTS),
    "gtsrb": ImageFiles("GTSRB", test=TEST, flip=False),
    "imagenette": ImageFiles("Imagenette", test={"split": "val"}),
    "pets": ImageFiles("OxfordIIITPet", ({"split": "trainval"},), TEST, _of_attributes("_images", "_labels")),
    "sun397": ImageFiles("SUN397", ({},), samples=BY_LISTS),
}
"""Name -> a data set of image files of any size."""

ARRAYS = {
    "fashion-mnist": Arrays("FashionMNIST", {"train": True}, {"train": False}, 28, 1, flip=True),
    "mnist": Arrays("MNIST", {"train": True}, {"train": False}, 28, 1, flip=False),
    "stl10": Arrays("STL10", {"split": "train"}, TEST, 96, 3, flip=True),
}
"""Name -> a data set of images in arrays."""


def open_files(settings: DataSettings, download: bool) -> Dataset:
    """Open a data set of image files; the label files of both parts are read, and no image.

    Raises:
        UserError: the files are missing or damaged, or cannot be downloaded.
    """
    source, root = FILES[settings.dataset], _root(settings)

    def part(arguments: Arguments) -> Any:
        return _construct(source.source, settings.dataset, root, arguments, download=download)

    train = [part(arguments) for arguments in source.train]
    samples = [sample for one in train for sample in source.samples(one)]
    classes = _classes(train[0], [label for _, label in samples])
    listing = _list_samples(samples, classes)
    if source.test is None:
        reason = f"torchvision names no test images of {settings.dataset}"
        parts = split_listing(listing, root, reason)
    else:
        parts = FolderParts(listing, _list_samples(source.samples(part(source.test)), classes), "")
    return make_file_dataset(settings.dataset, parts, settings, flip=source.flip, statistics=IMAGENET)


def open_arrays(settings: DataSettings, download: bool) -> Dataset:
    """Open a data set of images in arrays; the training images are read, those to test on later.

    Raises:
        UserError: the files are missing or damaged, or cannot be downloaded.
    """
    source, root = ARRAYS[settings.dataset], _root(settings)

    @cache
    def train() -> Any:
        return _construct(source.source, settings.dataset, root, source.train, download=download)

    def images(part: Any) -> ArrayImages:
        pixels = torch.from_numpy(np.asarray(part.data))
        labels = np.asarray(part.labels if hasattr(part, "labels") else part.targets).astype(np.int64)
        return ArrayImages(pixels.reshape(-1, source.channels, source.size, source.size), torch.from_numpy(labels))

    def test() -> ArrayImages:
        return images(_construct(source.source, settings.dataset, root, source.test, download=download))

    return Dataset(
        settings.dataset,
        list(train().classes),
        (source.channels, source.size, source.size),
        flip=source.flip,
        read_train=lambda: images(train()),
        read_test=test,
        hash_test=lambda: test().fingerprint(),
        statistics=source.statistics,
    )


def _construct(source: str, name: str, root: Path, arguments: Arguments, *, download: bool) -> Any:
    """Build the class of torchvision for a part of a data set."""
    from torchvision import datasets  # a second to import

    if not root.is_dir() and not download:
        raise UserError(f"{name} is not in {root}: fetch it with --download or name its place with --data-root")
    try:
        return getattr(datasets, source)(str(root), **arguments, download=download)
    except Exception as error:  # whatever its parsers raise for foreign bytes
        if download:
            raise UserError(
                f"downloading {name} to {root} failed ({printable(str(error))}): try again, or put its files there"
            ) from None
        missing = isinstance(error, FileNotFoundError) or "not found" in str(error)
        if missing:
            words = f"{name} is not whole in {root} ({printable(str(error)).removesuffix('.')})"
        else:
            words = f"a file of {name} in {root} {fault_of(error)}"
        raise UserError(f"{words}: fetch it with --download or name its place with --data-root") from None


def _classes(part: Any, labels: Sequence[int]) -> list[str]:
    """Return the class names of a part in label order; numbers where torchvision names none."""
    names = getattr(part, "classes", None) or getattr(part, "categories", None) or range(max(labels) + 1)
    # Imagenette names a class by several words
    return [class_name(", ".join(name) if isinstance(name, tuple) else str(name)) for name in names]


def _list_samples(samples: Iterable[Sample], classes: Sequence[str]) -> Listing:
    """List files by class, in label order and sorted by name within a class."""
    by_label: dict[int, list[Path]] = defaultdict(list)
    for file, label in samples:
        by_label[int(label)].append(Path(file))
    return {classes[label]: sorted(by_label[label]) for label in sorted(by_label)}


def _root(settings: DataSettings) -> Path:
    return Path(settings.root or DEFAULT_ROOT).expanduser()
