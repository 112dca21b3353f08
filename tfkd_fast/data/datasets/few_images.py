"""A data set with fewer training images than another one, for short experiments."""

import torch

from tfkd_fast.data.datasets.base import Dataset, PartOfDataset, choose_images
from tfkd_fast.data.images import ImageSet
from tfkd_fast.data.split import SPLIT_SEED
from tfkd_fast.errors import UserError
from tfkd_fast.randomness import Purpose, random_keys


class FewImages(PartOfDataset):
    """The same number of training images of every class, in their original order, and all test images; images that the
    data set itself holds out all stay.

    The choice is a function of the images' indices in the whole set, and a smaller choice is a subset of a larger one.
    (The first images of a class would be a poor choice: files are often sorted.)
    """

    def __init__(self, whole: Dataset, per_class: int) -> None:
        """Choose `per_class` >= 1 training images of each class.

        Raises:
            UserError: a class has fewer images; raised when images are read.
        """
        super().__init__(whole, whole.classes, read_train=self._choose, read_test=whole.read_test)
        self._per_class = per_class

    def _choose(self) -> ImageSet:
        images = self.whole.read_train()
        keys = random_keys(len(images), Purpose.SUBSET, seed=SPLIT_SEED, epoch=0, stream=0, device=images.labels.device)
        free = torch.ones(len(images), dtype=torch.bool) if images.held_out is None else ~images.held_out
        chosen = [(~free).nonzero().squeeze(1)]
        for label, name in enumerate(self.classes):
            members = ((images.labels == label) & free).nonzero().squeeze(1)
            if len(members) < self._per_class:
                raise UserError(
                    f"data.per_class is {self._per_class}, but class {name!r} has {len(members)} training images: "
                    "lower it"
                )
            chosen.append(members[keys[members].argsort(stable=True)[: self._per_class]])
        return choose_images(images, torch.cat(chosen).sort().values)
