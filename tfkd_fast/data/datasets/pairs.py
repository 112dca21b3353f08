"""Data sets of pairs of an image and a label, as torch's `Dataset` and Hugging Face's `datasets` give them.

Images are read when they are needed and brought to the size of the recipe as image files are; what the pairs' own
transforms do happens before that, and has to be the same at every reading.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from torch.utils.data import Dataset as TorchDataset

from tfkd_fast.data.datasets.base import Dataset
from tfkd_fast.data.datasets.identity import class_name
from tfkd_fast.data.images import ImageSet, convert_colours, describe_reading, from_pillow, show_centre, to_pillow
from tfkd_fast.data.settings import DataSettings
from tfkd_fast.data.split import SPLIT_SEED, describe_held_out, split_indices
from tfkd_fast.errors import Notice, UserError

TEST_SHARE = 0.2
"""Share of test images of every class where one part is given (our choice)."""
LABELS = ("targets", "labels", "_labels")
"""Attributes in which data sets keep their labels, so that few images are read for them."""
REREAD, READINGS = 4, 5
"""How many images are compared over how many readings: a flip of half of them passes once in 2^16 (our choice)."""
REMEDY = "give pairs of an image (Pillow's, or uint8 or 0..1 in a tensor (C,H,W) or array (H,W,C)) and a whole number"


class Pairs(Protocol):
    """A `torch.utils.data.Dataset` with a length, or whatever has the same two methods."""

    def __len__(self) -> int:
        """Return the number N of pairs."""

    def __getitem__(self, index: int) -> Any:
        """Return the image and the label at an index, 0 .. N-1."""


class LabelledPairs(TorchDataset[tuple[Image.Image, int]]):
    """Pairs whose labels are all known at first; whenever an image is read its label is compared."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs, self.labels = pairs, read_labels(pairs)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = read_pair(self.pairs, index)
        if label != self.labels[index]:
            raise UserError(
                f"number {index} of the data set has the label {label}, and among all of its labels "
                f"{int(self.labels[index])}: make its items agree with its attribute {' or '.join(LABELS[:2])}"
            )
        return image, label


class PairImages(ImageSet):
    """The images of pairs, read on access and brought to `size` x `size` pixels, see `images.show_centre`."""

    hashing = "pixels:"

    def __init__(
        self, pairs: Pairs, places: Sequence[int], labels: Tensor, image_shape: tuple[int, int, int], share: float
    ) -> None:
        """Describe images, which are read when they are needed.

        Args:
            pairs: the pairs, as `LabelledPairs` gives them.
            places: the N indices of pairs that this set holds.
            labels: (N,) int64.
            image_shape: channels, 1 or 3, height and width of every image.
            share: side of the centred square that is shown over the shorter side of the image.
        """
        self.labels, self.image_shape = labels, image_shape
        self._pairs, self._places, self._share = pairs, places, share

    def image(self, index: int) -> Tensor:
        return from_pillow(show_centre(self.whole(index), self.image_shape[2], self._share))

    def whole(self, index: int) -> Image.Image:
        """Read one image in the colours of the set.

        Raises:
            UserError: it is no image, or has colours where the first image has none.
        """
        place = self._places[index]
        image: Image.Image = self._pairs[place][0]
        if self.image_shape[0] == 1 and image.mode != "L":
            raise UserError(f"image number {place} of the data set has colours, and the first has none: convert them")
        return image if self.image_shape[0] == 1 else image.convert("RGB")

    def all_images(self) -> Tensor:
        channels, height, width = self.image_shape
        images = torch.empty(len(self), height, width, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
        for index in range(len(self)):
            images[index] = self.image(index)
        return images

    def subset(self, indices: Tensor) -> Self:
        places = [self._places[index] for index in indices.tolist()]
        return type(self)(self._pairs, places, self.labels[indices], self.image_shape, self._share)

    def refuse_unreadable(self) -> None:
        """Read every image once, and raise UserError for one that cannot be."""
        for index in range(len(self)):
            self.whole(index)

    def _digest(self, update: Callable[[Any], None]) -> None:
        """Pass the shape and the pixels of each whole image."""
        for index in range(len(self)):
            image = self.whole(index)
            update(repr(image.size).encode())
            update(image.tobytes())


def make_pair_dataset(
    name: str, parts: Any, settings: DataSettings, held_out_part: str = "the second data set"
) -> Dataset:
    """Make a data set of pairs.

    Args:
        name: the name in recipes.
        parts: pairs to train on, perhaps pairs to hold out, and pairs to test on; or the pairs of all, of which 20 % of
            each class are the test set. Class names are the attribute `classes` of the first, or else the labels; those
            of other parts say what their labels mean.
        settings: the `[data]` table.
        held_out_part: what pairs to hold out are called.

    Raises:
        UserError: they are no such pairs, their labels are none of the classes, or a share is to be held out beside
            pairs to hold out.
    """
    several = _checked_parts(parts)
    own, *held_out = (LabelledPairs(part) for part in several[:-1] or several)
    classes = read_classes(own.pairs) or [str(label) for label in range(len(own.labels.unique()))]
    _refuse_classes(classes)
    labels = torch.cat([_find_labels(part, own, classes) for part in (own, *held_out)])
    _refuse_missing(labels[: len(own)], classes)
    train: ConcatDataset[Any] = ConcatDataset([own, *held_out])
    channels = 1 if train[0][0].mode == "L" else 3
    image_shape = (channels, settings.image_size, settings.image_size)
    words = describe_held_out(held_out_part, settings.holdout) if held_out else ""
    fit = test = torch.arange(len(labels))
    if len(several) == 1:
        fit, test = split_indices(labels, TEST_SHARE, SPLIT_SEED)
        words = (
            f"no test set was given, so {100 * TEST_SHARE:g} % of the images of each class are the test set: "
            f"{len(test):,} of {len(labels):,}, chosen by their indices with seed {SPLIT_SEED}"
        )

    def images(pairs: Pairs, of_pairs: Tensor, places: Tensor) -> PairImages:
        return PairImages(pairs, places.tolist(), of_pairs[places], image_shape, settings.centre_crop)

    def read_train() -> PairImages:
        read = images(train, labels, fit)
        read.held_out = fit >= len(own) if held_out else None
        return read

    def read_test() -> PairImages:
        if len(several) == 1:
            return images(train, labels, test)
        tested = LabelledPairs(several[-1])
        return images(tested, _find_labels(tested, own, classes), torch.arange(len(tested)))

    return Dataset(
        name,
        classes,
        image_shape,
        flip=True,
        read_train=read_train,
        read_test=read_test,
        hash_test=lambda: read_test().fingerprint(),
        reading=describe_reading(settings.image_size, settings.centre_crop),
        parts=words,
    )


def _checked_parts(parts: Any) -> Sequence[Any]:
    """The one to three data sets that a program gives."""
    several = parts if isinstance(parts, tuple | list) else (parts,)
    have_both = all(hasattr(part, "__getitem__") and hasattr(part, "__len__") for part in several)
    if not 1 <= len(several) <= 3 or not have_both:
        raise UserError(
            "a data set from Python is one torch Dataset with a length, or two: (train, test), or three: (train, "
            "held out, test)"
        )
    for part in several:
        _refuse_changing(part)
    return several


def read_pair(pairs: Pairs, index: int) -> tuple[Image.Image, int]:
    """Read an image, in RGB or grey, and its label.

    Raises:
        UserError: the data set raises an error, or gives something else.
    """
    try:
        return _to_pair(pairs[index], index)
    except UserError:
        raise
    except Exception as error:  # whatever a foreign data set raises, and torch for a foreign array
        raise UserError(
            f"number {index} of the data set cannot be read ({type(error).__name__}: {error}): mend it"
        ) from None


def _to_pair(pair: Any, index: int) -> tuple[Image.Image, int]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError(f"number {index} of the data set is no pair: {REMEDY}")
    label = np.asarray(pair[1])
    if label.size != 1 or label.dtype.kind not in "iu" or label.item() > torch.iinfo(torch.int64).max:
        raise UserError(f"the label of number {index} of the data set is no whole number: {REMEDY}")
    return _to_image(pair[0], index), int(label.item())


def read_labels(pairs: Pairs) -> Tensor:
    """Return the labels (N,) int64 of pairs, from an attribute that holds them or else by reading every pair.

    An attribute is believed if the first pair of every label agrees with it.

    Raises:
        UserError: there is no pair, or a label is no whole number.
    """
    count = len(pairs)
    if not count:
        raise UserError("the data set is empty: give it images")
    for name in LABELS if getattr(pairs, "target_transform", None) is None else ():
        values = _whole_numbers(pairs, name)
        if len(values) == count:
            found = zip(*np.unique(values, return_index=True), strict=True)  # each label, and where it is first
            if all(read_pair(pairs, int(place))[1] == label for label, place in found):
                return torch.from_numpy(values.astype(np.int64))
    return torch.tensor([read_pair(pairs, index)[1] for index in range(count)])


def _whole_numbers(pairs: Pairs, name: str) -> np.ndarray[Any, Any]:
    """The whole numbers that an attribute holds; none if it holds something else."""
    with suppress(Exception):  # whatever a foreign attribute is
        values = np.asarray(getattr(pairs, name))
        if values.ndim == 1 and values.dtype.kind in "iu":
            return values
    return np.empty(0, np.int64)


def read_classes(pairs: Any) -> list[str]:
    """Return the names in the attribute `classes` of pairs; none if there is no such attribute, or it lists nothing.

    Raises:
        UserError: the names have no order, as in a set or a mapping from something else than names to labels.
    """
    names: Any = ""
    with suppress(Exception):  # whatever a foreign attribute is
        names = pairs.classes.tolist() if isinstance(pairs.classes, np.ndarray | Tensor) else pairs.classes
    if isinstance(names, Mapping) and sorted(map(str, names.values())) == sorted(map(str, range(len(names)))):
        names = sorted(names, key=lambda name: int(names[name]))
    if isinstance(names, set | frozenset | Mapping):
        raise UserError(
            "the attribute classes of the data set does not say which label each name has: make it a list of the names "
            "of labels 0, 1, ..."
        )
    with suppress(Exception):
        return [] if isinstance(names, str) else [class_name(str(name)) for name in names]
    return []


def _to_image(value: Any, index: int) -> Image.Image:
    """Convert an image of a pair to Pillow's, in RGB or grey."""
    if isinstance(value, Image.Image) and 0 not in value.size:
        value.load()
        return value if value.mode == "L" else convert_colours(value, f"number {index} of the data set")
    if isinstance(value, np.ndarray) and value.ndim in (2, 3) and value.dtype.kind in "uif":
        value = torch.from_numpy(np.ascontiguousarray(value if value.ndim == 3 else value[..., None])).permute(2, 0, 1)
    if not isinstance(value, Tensor) or value.ndim != 3 or len(value) not in (1, 3) or 0 in value.shape:
        raise UserError(f"number {index} of the data set shows no image: {REMEDY}")
    if value.is_floating_point():
        if not (value.min() >= 0 and value.max() <= 1):
            raise UserError(
                f"the pixels of number {index} of the data set are not in 0..1: leave the normalisation to the recipe"
            )
        value = (255 * value).round().to(torch.uint8)
    if value.dtype != torch.uint8:
        raise UserError(f"the pixels of number {index} of the data set are {value.dtype}: {REMEDY}")
    return to_pillow(value)


def _refuse_changing(pairs: Any) -> None:
    """Raise UserError for pairs whose images are others when they are read again."""
    for place in {len(pairs) * one // REREAD for one in range(REREAD)} if len(pairs) else ():
        images = [read_pair(pairs, place)[0] for _ in range(READINGS)]
        if len({(image.size, image.tobytes()) for image in images}) > 1:
            raise UserError(
                "the data set gives other pixels at each reading: leave random transforms to the [data] table of the "
                "recipe"
            )


def _find_labels(part: LabelledPairs, own: LabelledPairs, classes: Sequence[str]) -> Tensor:
    """Return the labels (N,) int64 of a part among `classes`, by the names that it and the training images have."""
    names, known = (_names_of_labels(one.pairs) for one in (part, own))
    labels = part.labels
    if names and known and names != known:
        _refuse_outside(labels, len(names))
        label_of = {name: label for label, name in enumerate(known)}
        labels = torch.tensor([label_of.get(name, -1) for name in names])[labels]
        if (labels < 0).any():
            name = names[int(part.labels[labels < 0][0])]
            raise UserError(
                f"the data set has held-out or test images of class {name!r} and no training image: add some, or leave "
                "the class out"
            )
    _refuse_outside(labels, len(classes))
    if bool(names) != bool(known) and len(labels.unique()) < len(classes):
        notice = (
            "either the training images or the held-out or test images of the data set have names of classes, and not "
            "both, so equal labels are taken for equal classes; to be sure, give both an attribute classes"
        )
        warnings.warn(Notice(notice), stacklevel=4)
    return labels


def _names_of_labels(pairs: Any) -> list[str]:
    """The names that pairs have for their labels, or else those that they were chosen from or joined of.

    Raises:
        UserError: what they were joined of has other names for the same labels.
    """
    if names := read_classes(pairs):
        return names
    joined = pairs.datasets if isinstance(pairs, ConcatDataset) else ()
    sources = [pairs.dataset] if isinstance(pairs, Subset) else joined
    found = [_names_of_labels(source) for source in sources]
    most = max(found, key=len, default=[])
    if any(names != most[: len(names)] for names in found):
        raise UserError(
            "data sets that were joined have other names for the same labels: number the classes of each alike, or "
            "say what they are in an attribute classes of what joins them"
        )
    return most


def _refuse_outside(labels: Tensor, count: int) -> None:
    outside = labels[(labels < 0) | (labels >= count)]
    if len(outside):
        raise UserError(
            f"labels of the data set must be 0 .. {count - 1}, and one is {int(outside[0])}: number its classes from 0"
        )


def _refuse_classes(classes: Sequence[str]) -> None:
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise UserError(f"the data set names {len(set(classes))} classes: give it two or more, each once")


def _refuse_missing(labels: Tensor, classes: Sequence[str]) -> None:
    missing = labels.bincount(minlength=len(classes)) == 0
    if missing.any():
        name = classes[int(missing.nonzero()[0])]
        raise UserError(f"the data set has no training image of class {name!r}: leave the class out")


HUB = "hf/"
"""What the names of Hugging Face's data sets begin with in recipes."""
VALIDATION = ("validation", "valid", "val")
"""Splits of Hugging Face's data sets that are held out beside a split test, and the test set where there is none."""


class HubPairs:
    """A split of a data set of Hugging Face's as pairs."""

    def __init__(self, split: Any, image: str, label: str, columns: str) -> None:
        """Take two columns of a split.

        Args:
            split: the split.
            image, label: the names of the columns.
            columns: how they were chosen, in words; empty if there are no others.
        """
        self.classes: list[str] = split.features[label].names
        self.columns = columns
        self.labels = split[label]
        self._split, self._image, self._label = split, image, label

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row: Mapping[str, Any] = self._split[index]
        return row[self._image], row[self._label]


def open_hub(settings: DataSettings, download: bool) -> Dataset:
    """Open a data set of Hugging Face's: `hf/NAME` of the Hub, or what `save_to_disk` wrote to `settings.root`.

    Its splits train and test are read, and validation is held out; without test it is the test set, and train alone is
    split. Of the columns those of images and class labels are read. No code of a data set is run.

    Raises:
        UserError: the package is missing, or the data set, its splits or its columns.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"data set {settings.dataset} needs datasets: pip install 'tfkd-fast[hub]'") from None
    name = settings.dataset.removeprefix(HUB)
    if settings.root is None and not download:
        raise UserError(f"data set {settings.dataset} is fetched with --download, or read from --data-root FOLDER")
    try:
        if settings.root is not None:
            splits = datasets.load_from_disk(str(Path(settings.root).expanduser()))
        else:
            splits = datasets.load_dataset(name)
    except Exception as error:  # of its many parsers, and of the network
        where = settings.root or "the Hub"
        raise UserError(
            f"data set {settings.dataset} cannot be read from {where} ({error}): name another, or its folder"
        ) from None
    if not isinstance(splits, Mapping) or "train" not in splits:
        raise UserError(f"data set {settings.dataset} has no split train: save a DatasetDict with train and test")
    validation = next((one for one in VALIDATION if one in splits), "")
    names = [one for one in ("train", validation, "test") if one in splits]
    parts = [_hub_pairs(splits[one], settings.dataset) for one in names]
    dataset = make_pair_dataset(settings.dataset, parts, settings, held_out_part=validation)
    words = [dataset.parts, *dict.fromkeys(part.columns for part in parts)]
    if validation and "test" not in names:
        words.append(f"there is no split test, so the images of {validation} are the test set")
    if unread := sorted(splits.keys() - set(names)):
        words.append(f"not read: {', '.join(unread)}")
    dataset.parts = "; ".join(filter(None, words))
    return dataset


def _hub_pairs(split: Any, name: str) -> HubPairs:
    """Find the columns of a split."""
    import datasets

    images = [key for key, feature in split.features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in split.features.items() if isinstance(feature, datasets.ClassLabel)]
    if not images or not labels:
        raise UserError(
            f"data set {name} needs a column of images and one of class labels: it has {', '.join(split.features)}"
        )
    label = next((key for key in ("label", "fine_label") if key in labels), labels[0])
    columns = f"images are read from column {images[0]} of {', '.join(images)}" if len(images) > 1 else ""
    if len(labels) > 1:
        columns += f"{'; ' * bool(columns)}labels are read from column {label} of {', '.join(labels)}"
    return HubPairs(split, images[0], label, columns)
