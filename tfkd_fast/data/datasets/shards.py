"""Data sets in shards: tar archives of images and labels, in the layout of WebDataset or of class folders.

An image is read from its place in its archive, so that order, augmentation and parts are those of any other data set,
whatever shard an image is in. The layout is that of https://github.com/webdataset/webdataset: files whose paths are
the same up to the first dot of the name belong together.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tfkd_fast.data.datasets.base import Dataset
from tfkd_fast.data.datasets.folder import (
    SUFFIXES,
    TEST,
    TRAIN,
    VALIDATION,
    FolderParts,
    Listing,
    make_file_dataset,
    need_two_classes,
    refuse_unknown_classes,
    split_listing,
)
from tfkd_fast.data.datasets.identity import class_name
from tfkd_fast.data.members import TarMember, list_members
from tfkd_fast.data.settings import DataSettings
from tfkd_fast.data.split import describe_held_out
from tfkd_fast.errors import UserError
from tfkd_fast.files import is_there, parse_json, read_text, reading

CLASSES = "classes.txt"
"""The file beside the shards that names the classes of labels 0, 1, ..., a line each; it may be missing."""
HELD_OUT = "validation"
PARTS = {TRAIN: TRAIN, "training": TRAIN, TEST: TEST, "testing": TEST, **dict.fromkeys(VALIDATION, HELD_OUT)}
"""Word in the path of a shard -> the part that its images belong to."""
Sample = tuple[TarMember, TarMember | None]
"""An image, and what its label is read from, if there is a file for it."""
LABELS = ("cls", "json")
"""Extensions of what a label is read from: a number or a name, or an object in which it is `label` or `cls`."""


def open_shards(settings: DataSettings, download: bool) -> Dataset:
    """Open shards below a folder, with RGB images of `settings.image_size` pixels a side.

    The words train, test and val in the path of a shard say which part it is of, as the folders of data set folder do;
    without them all images are split class by class. Every shard is looked through once, about 40 us for each file.

    Raises:
        UserError: no folder is named, it holds no shard, parts cannot be told or hold no image, a sample has no label
            or several images, a class occurs in the test part only, or a share is to be held out beside validation
            shards.
    """
    if settings.root is None:
        raise UserError(f"data set {settings.dataset} needs the folder of its shards: name it with --data-root FOLDER")
    root = Path(settings.root).expanduser()
    found = _list_parts(root)
    names = _class_names(root)
    listings, unread = {}, 0
    for part, shards in found.items():
        samples, dotted = _find_samples(shards)
        if not samples:
            raise UserError(
                f"no shard of {' in '.join(filter(None, (part, str(root))))} holds an image whose name has one dot "
                f"({', '.join(SUFFIXES)}): add some, or leave the part out"
            )
        listings[part], unread = _by_class(samples, names), unread + dotted
    parts = _find_parts(root, listings, settings.holdout)
    if unread:
        words = f"not read: {unread:,} image{'s' * (unread > 1)} with more dots in the name than that of its extension"
        parts = parts._replace(words="; ".join(filter(None, (parts.words, words))))
    return make_file_dataset(settings.dataset, parts, settings)


def _list_parts(root: Path) -> dict[str, list[Path]]:
    """Part -> its shards, sorted by path; one part "" where no path names any."""
    if not is_there(root) or not root.is_dir():
        raise UserError(f"there is no folder {root}: name the folder of the shards with --data-root")
    with reading(root, "the folder", "make it readable"):
        shards = sorted(path for path in root.rglob("*.tar") if not path.name.startswith("."))
    if not shards:
        raise UserError(f"{root} holds no shard (*.tar): name the folder of the shards with --data-root")
    parts: dict[str, list[Path]] = defaultdict(list)
    for shard in shards:
        words = re.split(r"[^a-z]+", str(shard.relative_to(root)).lower())
        named = {PARTS[word] for word in words if word in PARTS}
        if len(named) > 1:
            raise UserError(f"{shard} might be of {' or '.join(sorted(named))}: name one of them in its path")
        parts[next(iter(named), "")].append(shard)
    if "" in parts and len(parts) > 1:
        raise UserError(f"{parts[''][0]} names no part and other shards do: put train, test or val into its path")
    if parts.keys() & {TEST, HELD_OUT} and TRAIN not in parts:
        raise UserError(f"no shard of {root} has train in its path: images to train on are missing")
    return parts


def _find_parts(root: Path, listings: dict[str, Listing], holdout: float) -> FolderParts:
    if "" in listings or len(listings) == 1:
        (listing,) = listings.values()
        need_two_classes(root, listing)
        return split_listing(listing, root, "there is no shard of test")
    train, test, validation = (listings.get(part) for part in (TRAIN, TEST, HELD_OUT))
    assert train is not None
    need_two_classes(root, train)
    for listing in filter(None, (test, validation)):
        refuse_unknown_classes(listing, train, root, root / "the shards of train")
    if test is None:
        assert validation is not None
        words = "there is no shard of test, so those of val are the test set; what is held out comes from train"
        return FolderParts(train, validation, words)
    if validation is None:
        return FolderParts(train, test, "")
    return FolderParts(train, test, describe_held_out("the shards of val", holdout), validation)


def _find_samples(shards: list[Path]) -> tuple[list[Sample], int]:
    """List the samples with an image, and count the images that belong to none because of more dots in their names."""
    found: list[Sample] = []
    dotted = 0
    with ThreadPoolExecutor() as pool:
        for members in pool.map(lambda shard: list(list_members(shard)), shards):
            samples: dict[str, dict[str, TarMember]] = defaultdict(dict)
            for member in members:
                folder, slash, name = member.path.rpartition("/")
                key, _, extension = name.partition(".")
                if key:  # hidden files have none
                    samples[folder + slash + key][extension.lower()] = member
            for key, files in samples.items():
                images = [member for extension, member in files.items() if f".{extension}" in SUFFIXES]
                dotted += sum(extension.endswith(SUFFIXES) for extension in files)
                if len(images) > 1:
                    raise UserError(f"sample {key} of {images[0].archive} has {len(images)} images: leave one of them")
                if images:
                    found.append((images[0], next((files[name] for name in LABELS if name in files), None)))
    return found, dotted


def _by_class(samples: Iterable[Sample], names: list[str] | None) -> Listing:
    listing: dict[str, list[TarMember]] = defaultdict(list)
    for image, label in samples:
        listing[_class_of(image, label, names)].append(image)
    numbers: dict[int, str] = {}
    for name in filter(str.isdecimal, listing):
        if (other := numbers.setdefault(int(name), name)) != name:
            raise UserError(f"labels {other} and {name}, that of {listing[name][0]}, are one number: write one of them")
    in_order = {name: place for place, name in enumerate(names or ())}

    def place(name: str) -> tuple[int, int, str]:
        return in_order.get(name, 0), int(name) if name.isdecimal() else 0, name

    return {name: sorted(listing[name]) for name in sorted(listing, key=place)}


def _class_of(image: TarMember, label: TarMember | None, names: list[str] | None) -> str:
    """The name of the class of an image: by its label, or that of the folder that it is in."""
    if label is None:
        folder = image.path.rpartition("/")[0].rpartition("/")[2]
        if folder in ("", "."):
            raise UserError(f"{image} has no label: add a file of its name that ends in .cls, or put it into a folder")
        return class_name(folder)
    with reading(str(label), "the label", "write a number or a name"), label.open() as file:
        text = file.read().decode()
        if label.path.lower().endswith(".json"):
            found = parse_json(text)
            value = found["label"] if "label" in found else found["cls"]
            if not isinstance(value, str | int | float):
                raise ValueError("it is neither a number nor a name")
            text = str(value)
        text = text.strip()
        if not text:
            raise ValueError("it is empty")
        number = int(text) if text.isdecimal() else None
    name = class_name(text)
    if names is None or (number is None and name in names):
        return name
    if number is None or number >= len(names):
        raise UserError(
            f"{label} is {name}, and {CLASSES} names {len(names)} classes: add it there, or write one of them"
        )
    return names[number]


def _class_names(root: Path) -> list[str] | None:
    table = root / CLASSES
    if not table.exists():
        return None
    names = [class_name(line.strip()) for line in read_text(table, "the class names", "repair it").splitlines()]
    names = [name for name in names if name]
    if len({*names}) < len(names):
        raise UserError(f"{table} names a class twice: give every label a name of its own")
    return names
