"""ImageNet and Tiny-ImageNet in the layouts that they are distributed in; the labelled validation images are tested on.

Classes are named by their WordNet numbers. Sources: Russakovsky et al., "ImageNet Large Scale Visual Recognition
Challenge", 2015; Tiny-ImageNet of the course CS231n, 64x64 pixels, 200 classes.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tfkd_fast.data.datasets.base import ChannelStatistics, Dataset
from tfkd_fast.data.datasets.folder import (
    FolderParts,
    Listing,
    list_classes,
    list_folders,
    list_images,
    make_file_dataset,
    refuse_unknown_classes,
)
from tfkd_fast.data.datasets.torchvision_sets import IMAGENET
from tfkd_fast.data.settings import DataSettings
from tfkd_fast.errors import UserError
from tfkd_fast.files import read_bytes, read_text, reading

TINY = ChannelStatistics((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))
"""Statistics of the training images of Tiny-ImageNet, in wide use."""
RESTORE = "unpack the data set again"

SOLUTION = "LOC_val_solution.csv"
"""The labels of the validation images as Kaggle distributes them."""
DEVKIT = "ILSVRC2012_devkit_t12/data"
"""The folder of the labels as image-net.org distributes them."""


def open_tiny_imagenet(settings: DataSettings, download: bool) -> Dataset:
    """Open Tiny-ImageNet: train/CLASS/images/*, and val/images/* with val/val_annotations.txt.

    `settings.root` is the folder tiny-imagenet-200 or the one that it is in. Its own test images have no labels.

    Raises:
        UserError: files are missing, or the data set is to be downloaded.
    """
    root = _find_root(settings, "http://cs231n.stanford.edu/tiny-imagenet-200.zip", download, "tiny-imagenet-200")
    train = {place.name: list_images(place / "images") for place in list_folders(root / "train")}
    table = root / "val" / "val_annotations.txt"
    rows = [line.split("\t") for line in read_text(table, "the labels", RESTORE).splitlines() if line]
    with reading(table, "the labels", RESTORE):
        test = _by_class((root / "val" / "images" / row[0], row[1]) for row in rows)
    refuse_unknown_classes(test, train, table, root / "train")
    words = "its test images have no labels, so those of val/ are the test set; what is held out comes from train/"
    return make_file_dataset("tiny-imagenet", FolderParts(train, test, words), settings, statistics=TINY)


def open_imagenet(settings: DataSettings, download: bool) -> Dataset:
    """Open ImageNet (ILSVRC 2012): train/CLASS/*, and val/CLASS/*, or val/* with the labels of Kaggle or of the devkit.

    `settings.root` is the folder of train/ and val/, or that of Kaggle's archive.

    Raises:
        UserError: files are missing, or the data set is to be downloaded.
    """
    root = _find_root(settings, "https://image-net.org, with an account,", download, "ILSVRC/Data/CLS-LOC")
    train, place = list_classes(root / "train"), root / "val"
    test = list_classes(place) if list_folders(place) else _flat_validation(place, Path(settings.root or ""))
    refuse_unknown_classes(test, train, place, root / "train")
    words = "its test images have no labels, so those of val/ are the test set; what is held out comes from train/"
    return make_file_dataset("imagenet", FolderParts(train, test, words), settings, statistics=IMAGENET)


def _find_root(settings: DataSettings, source: str, download: bool, inner: str) -> Path:
    """Return the folder that holds train/: the root, or a folder in it."""
    name = settings.dataset
    if settings.root is None:
        raise UserError(f"data set {name} needs its folder: name it with --data-root FOLDER")
    places = [Path(settings.root), Path(settings.root, inner)]
    for place in places:
        if (place / "train").is_dir():
            return place
    how = f"fetch it from {source} and name its folder with --data-root"
    if download:
        raise UserError(f"{name} cannot be downloaded here: {how}")
    raise UserError(f"there is no folder train/ in {places[0]}, where {name} should be: {how}")


def _flat_validation(place: Path, root: Path) -> Listing:
    """List the validation images of one folder by class, with the labels that Kaggle or image-net.org give."""
    table, devkit = root / SOLUTION, root / DEVKIT
    if table.exists():
        rows = csv.reader(read_text(table, "the labels", RESTORE).splitlines()[1:])
        with reading(table, "the labels", RESTORE):
            return _by_class((place / f"{image}.JPEG", boxes.split()[0]) for image, boxes in rows)
    if not devkit.exists():
        raise UserError(
            f"{place} holds images without class folders, and {root} neither {SOLUTION} nor {DEVKIT}: add one of them, "
            "or sort the images into folders of their classes"
        )
    return _by_class(zip(list_images(place), _devkit_classes(devkit), strict=False))


def _devkit_classes(devkit: Path) -> list[str]:
    """Return the class of each validation image, in the order of their names."""
    from io import BytesIO

    from scipy.io import loadmat  # slow to import, and no other data set needs it

    meta, truth = devkit / "meta.mat", devkit / "ILSVRC2012_validation_ground_truth.txt"
    content = read_bytes(meta, "the class names", RESTORE)
    with reading(meta, "the class names", RESTORE):
        synsets = loadmat(BytesIO(content), squeeze_me=True)["synsets"]
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    lines = read_text(truth, "the labels", RESTORE).split()
    with reading(truth, "the labels", RESTORE):
        return [names[int(line)] for line in lines]


def _by_class(labelled: Iterable[tuple[Path, str]]) -> Listing:
    """List files by their classes; both are sorted by name."""
    listing: dict[str, list[Path]] = defaultdict(list)
    for file, name in labelled:
        listing[name].append(file)
    return {name: sorted(listing[name]) for name in sorted(listing)}
