"""A data set with some of the classes of another one."""

import re
from collections.abc import Sequence

import torch

from tfkd_fast.data.datasets.base import Dataset, PartOfDataset, choose_images
from tfkd_fast.data.datasets.identity import class_name
from tfkd_fast.data.images import ImageSet
from tfkd_fast.errors import UserError, nearest

RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def find_labels(choice: Sequence[str], classes: Sequence[str], setting: str) -> list[int]:
    """Return the ascending labels of classes that are given by name, by label ("7") or by a range of labels ("0-4").

    An item that is both a name and a label counts as a name: folders may have numbers for names.

    Args:
        choice: the chosen classes.
        classes: all class names in label order.
        setting: name of the setting, for error messages.

    Raises:
        UserError: a class does not exist, or fewer than two are chosen.
    """
    chosen: set[int] = set()
    for item in map(class_name, choice):
        numbers = RANGE.fullmatch(item)
        if item in classes:
            chosen.add(classes.index(item))
        elif numbers is None:
            raise UserError(f"{setting} names {item!r}, which is no class: {nearest(item, classes)}")
        else:
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            if not first <= last < len(classes):
                raise UserError(f"{setting} asks for {item}, but labels are 0-{len(classes) - 1}: choose from these")
            chosen.update(range(first, last + 1))
    if len(chosen) < 2:
        raise UserError(f"{setting} chooses {len(chosen)} of the {len(classes)} classes: choose two or more")
    return sorted(chosen)


class SomeClasses(PartOfDataset):
    """The images of some classes, relabelled 0, 1, ... in the order that they have in the whole data set."""

    def __init__(self, whole: Dataset, labels: Sequence[int]) -> None:
        """Choose the classes with these ascending labels of the whole data set."""
        super().__init__(
            whole,
            [whole.classes[label] for label in labels],
            read_train=lambda: self._choose(whole.read_train(), "training"),
            read_test=lambda: self._choose(whole.read_test(), "test"),
        )
        self._labels = torch.tensor(labels)

    def _choose(self, images: ImageSet, part: str) -> ImageSet:
        places = torch.isin(images.labels, self._labels).nonzero().squeeze(1)
        if not len(places):
            raise UserError(f"no {part} image shows any of the {len(self.classes)} classes of data.classes: add some")
        chosen = choose_images(images, places)
        chosen.labels = torch.searchsorted(self._labels, chosen.labels)
        chosen.places = places
        return chosen
