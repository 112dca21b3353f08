"""Data sets of image files in folders that are named after their classes: in two parts, or in one that is split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from tfkd_fast.data.datasets.base import ChannelStatistics, Dataset
from tfkd_fast.data.datasets.identity import class_name
from tfkd_fast.data.images import FileImages, describe_reading
from tfkd_fast.data.members import AnyFile
from tfkd_fast.data.settings import DataSettings
from tfkd_fast.data.split import SPLIT_SEED, describe_held_out, split_names
from tfkd_fast.errors import UserError
from tfkd_fast.files import is_there, reading

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

TRAIN, TEST = "train", "test"
VALIDATION = ("val", "valid", "validation")
"""Names of folders whose images are held out beside test/, and the test set where there is none."""

TEST_SHARE = 0.2
"""Share of test images of every class where a folder has no parts (our choice)."""

Listing = Mapping[str, Sequence[AnyFile]]
"""Class name, as it can be shown -> its image files; both are sorted by name."""


class FolderParts(NamedTuple):
    """The image files of a folder in its parts."""

    train: Listing
    """The files of the training images, without those of `held_out`."""
    test: Listing
    """The files of the test images."""
    words: str
    """How the parts were found where the folder does not name both, and what is not read; empty if there is nothing to
    say."""
    held_out: Listing | None = None
    """The files of training images that are held out, if the folder names them."""


def open_folder(settings: DataSettings, download: bool) -> Dataset:
    """Open a folder of RGB images of `settings.image_size` pixels a side.

    The classes are those of the training part, sorted by name. Files are listed at once and opened when they are read.
    Hidden files and files that are no images are skipped.

    Raises:
        UserError: no folder is named, it cannot be told what its folders are, a class is empty or occurs in the test
            part only, or a share is to be held out of a folder that names what is.
    """
    if settings.root is None:
        raise UserError("data set folder needs its folder: name it with --data-root FOLDER")
    root = Path(settings.root).expanduser()
    return make_file_dataset("folder", find_parts(root, settings.holdout), settings)


def make_file_dataset(
    name: str,
    parts: FolderParts,
    settings: DataSettings,
    *,
    flip: bool = True,
    statistics: ChannelStatistics | None = None,
) -> Dataset:
    """Make a data set of image files of `settings.image_size` pixels a side.

    The classes are those of the training part, in its order. Files are opened when they are read.

    Args:
        name: the name in recipes.
        parts: the files of the training and test images.
        settings: the `[data]` table.
        flip: whether a mirrored image still shows its class.
        statistics: the usual constants of the field; None to compute them from the training images.
    """
    train, test, words, held_out = parts
    labels = {name: label for label, name in enumerate(train)}
    size, share = settings.image_size, settings.centre_crop

    def images(*listings: Listing) -> FileImages:
        named = [(name, files) for listing in listings for name, files in listing.items()]
        of_files = [labels[name] for name, files in named for _ in files]
        return FileImages([file for _, files in named for file in files], torch.tensor(of_files), size, share)

    def training_images() -> FileImages:
        both = images(train, held_out or {})
        if held_out:
            both.held_out = torch.arange(len(both)) >= sum(map(len, train.values()))
        return both

    return Dataset(
        name,
        list(train),
        (3, size, size),
        flip=flip,
        read_train=training_images,
        read_test=lambda: images(test),
        hash_test=lambda: images(test).fingerprint(),
        statistics=statistics,
        reading=describe_reading(size, share),
        parts=words,
    )


def find_parts(root: Path, holdout: float) -> FolderParts:
    """Find the training and test images below a folder.

    train/CLASS/* and test/CLASS/* are taken as they are, and what is in val/CLASS/* beside them is held out. Without
    test/, the images of val/ are the test set. Class folders directly in the folder are split, see `split_names`: the
    parts are a function of the names of classes and files.

    Args:
        root: the folder.
        holdout: share of training images that is to be held out.

    Raises:
        UserError: the folder is missing, it cannot be told which images are to be tested or held out, or a share is
            asked for beside val/.
    """
    named = {place.name for place in list_folders(root)}
    parts = named & {TRAIN, TEST, *VALIDATION}
    if not parts:
        return _split(root)
    if TRAIN not in parts:
        raise UserError(
            f"there is no folder {root / TRAIN}: images belong into train/CLASS/ and test/CLASS/ of --data-root, or "
            "all into CLASS/"
        )
    validation, words = _only_validation(root, sorted(parts - {TRAIN, TEST}), tested=TEST in parts), []
    if TEST not in parts:
        words.append(
            f"there is no test/, so the images of {validation}/ are the test set; what is held out comes from train/"
        )
    elif validation:
        words.append(describe_held_out(f"{validation}/", holdout))
    names = [name for name in (TRAIN, TEST, validation) if name in parts]
    words += _unread([root / name for name in names], [f"{name}/" for name in sorted(named - set(names))])
    train, *others = (list_classes(root / name) for name in names)
    need_two_classes(root / TRAIN, train)
    for name, listing in zip(names[1:], others, strict=True):
        refuse_unknown_classes(listing, train, root / name, root / TRAIN)
    return FolderParts(train, others[0], "; ".join(words), *others[1:])


def list_classes(folder: Path) -> Listing:
    """List the image files of every class below a folder, without opening them.

    Raises:
        UserError: the folder is missing or holds no class, or a class holds no image.
    """
    places = list_folders(folder)
    if not places:
        raise UserError(f"{folder} holds no class: images belong into a folder of their class's name below it")
    listing: dict[str, list[Path]] = {}
    for place in places:
        name = class_name(place.name)
        if name in listing:
            raise UserError(f"two folders in {folder} are both shown as {name!r}: rename one of them")
        listing[name] = list_images(place)
        if listing[name]:
            continue
        if list_folders(place):
            raise UserError(
                f"{place} holds folders and no image: name the parts of a data set train/ and test/, and put all "
                "images of a class into one folder"
            )
        raise UserError(f"{place} holds no image ({', '.join(SUFFIXES)}): add some or delete it")
    return listing


def _split(root: Path) -> FolderParts:
    """Split the images of a folder without parts."""
    listing = list_classes(root)
    need_two_classes(root, listing)
    parts = split_listing(listing, root, "there are no train/ and test/")
    return parts._replace(words="; ".join([parts.words, *_unread([root], [])]))


def split_listing(listing: Listing, place: Path, reason: str) -> FolderParts:
    """Split the images of every class into training and test images, see `split_names`.

    Args:
        listing: the files.
        place: where they are, for error messages.
        reason: why they are split, as the beginning of a sentence.

    Raises:
        UserError: a class has one image.
    """
    train: dict[str, Sequence[AnyFile]] = {}
    test: dict[str, Sequence[AnyFile]] = {}
    for name, files in listing.items():
        if len(files) < 2:
            raise UserError(
                f"{place / name} holds one image, but a folder without train/ and test/ is split, class by class: add "
                "another, or make the parts yourself"
            )
        chosen = split_names([f"{name}/{file.name}" for file in files], TEST_SHARE, SPLIT_SEED)
        train[name] = [file for file, tested in zip(files, chosen, strict=True) if not tested]
        test[name] = [file for file, tested in zip(files, chosen, strict=True) if tested]
    images, tested = (sum(map(len, part.values())) for part in (listing, test))
    words = (
        f"{reason}, so {100 * TEST_SHARE:g} % of the images of each class are the test set: "
        f"{tested:,} of {images:,}, chosen by the names of the files with seed {SPLIT_SEED}"
    )
    return FolderParts(train, test, words)


def refuse_unknown_classes(test: Listing, train: Listing, place: Path, known: Path) -> None:
    """Raise UserError for a class of the test images that no training image has, or if there is no test image.

    Args:
        test, train: the files of both parts.
        place, known: where they are, for the error message.
    """
    if not test:
        raise UserError(f"{place} names no image: add some")
    for name in test:
        if name not in train:
            raise UserError(f"class {name!r} is in {place} but not in {known}: add it there too")


def _unread(parts: list[Path], found: list[str]) -> list[str]:
    """What is not read, in words: what was found beside the parts, and what lies in them where no image belongs."""
    loose = sum(_is_image(file) for part in parts for file in part.iterdir())
    classes = [place for part in parts for place in list_folders(part)]
    nested = sum(
        not _is_image(place) and not place.name.startswith(".") and place.is_dir()
        for folder in classes
        for place in folder.iterdir()
    )
    if loose:
        found = [*found, f"{loose:,} image{'s' * (loose > 1)} in no class folder"]
    if nested:
        found = [*found, f"{nested:,} folder{'s' * (nested > 1)} inside of class folders"]
    return [f"not read: {', '.join(found)}"] if found else []


def _only_validation(root: Path, found: list[str], *, tested: bool) -> str:
    """The one folder of validation images, if any. They are held out if others are `tested`, and else the test set."""
    if not found and not tested:
        raise UserError(
            f"there is no folder {root / TEST} and none of {', '.join(VALIDATION)}: add it, or name "
            f"{root / TRAIN} as --data-root, whose images are then split"
        )
    if len(found) > 1:
        both = " and ".join(f"{name}/" for name in found)
        if tested:
            raise UserError(f"both {both} of {root} might be held out: keep one of them there")
        raise UserError(f"{root} has no test/, and both {both} might be the test set: rename one of them to test")
    return found[0] if found else ""


def need_two_classes(place: Path, listing: Listing) -> None:
    """Raise UserError if the training images in `place` are of one class."""
    if len(listing) < 2:
        raise UserError(f"{place} holds the one class {next(iter(listing))!r}: add another")


def list_folders(folder: Path) -> list[Path]:
    """List the folders in a folder, without those that are hidden, sorted by name.

    Raises:
        UserError: the folder is missing or cannot be read.
    """
    if not is_there(folder) or not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}: images belong into train/CLASS/ and test/CLASS/ of --data-root, or all into "
            "CLASS/"
        )
    with reading(folder, "the folder", "make it readable"):
        return sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))


def list_images(folder: Path) -> list[Path]:
    """List the image files in a folder, sorted by name, without opening them."""
    with reading(folder, "the folder", "make it readable"):
        return sorted(filter(_is_image, folder.iterdir()))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
