"""Data sets of image files in folders that are named after their classes: train/CLASS/* and test/CLASS/*."""

from pathlib import Path

import torch

from tfkd_fast.data.datasets.base import Dataset
from tfkd_fast.data.images import READING, FileImages
from tfkd_fast.data.settings import DataSettings
from tfkd_fast.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

Listing = dict[str, list[Path]]
"""Class name -> its image files; both are sorted by name."""


def open_folder(settings: DataSettings, download: bool) -> Dataset:
    """Open a folder of RGB images of `settings.image_size` pixels a side.

    The classes are those of train/, sorted by name. Files are listed at once and opened when they are read. Hidden
    files and files that are no images are skipped.

    Raises:
        UserError: no folder is named, it lacks train/ or test/, or a class is empty or occurs in test/ only.
    """
    if settings.root is None:
        raise UserError("data set folder needs its folder: name it with --data-root FOLDER")
    root = Path(settings.root).expanduser()
    train, test = list_classes(root / "train"), list_classes(root / "test")
    classes = list(train)
    if len(classes) < 2:
        raise UserError(f"{root / 'train'} holds the one class {classes[0]!r}: add another")
    for name in test:
        if name not in train:
            raise UserError(f"class {name!r} is in {root / 'test'} but not in {root / 'train'}: add it there too")
    size = settings.image_size
    return Dataset(
        "folder",
        classes,
        (3, size, size),
        flip=True,
        read_train=lambda: _images(train, classes, size),
        read_test=lambda: _images(test, classes, size),
        reading=READING.format(size=size),
    )


def list_classes(folder: Path) -> Listing:
    """List the image files of every class below a folder, without opening them.

    Raises:
        UserError: the folder is missing or holds no class, or a class holds no image.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: images belong into train/CLASS/ and test/CLASS/ of --data-root")
    places = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    if not places:
        raise UserError(f"{folder} holds no class: images belong into a folder of their class's name below it")
    listing = {place.name: sorted(filter(_is_image, place.iterdir())) for place in places}
    for name, files in listing.items():
        if not files:
            raise UserError(f"{folder / name} holds no image ({', '.join(SUFFIXES)}): add some or delete it")
    return listing


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _images(listing: Listing, classes: list[str], size: int) -> FileImages:
    files = [file for files in listing.values() for file in files]
    labels = [classes.index(name) for name, files in listing.items() for _ in files]
    return FileImages(files, torch.tensor(labels), size)
