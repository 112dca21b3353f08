"""A data set of fewer training images than another has, for experiments that are to be short."""

import torch

from tfkd_fast.data.datasets.base import Dataset, PartOfDataset
from tfkd_fast.data.images import ImageSet
from tfkd_fast.data.split import SPLIT_SEED
from tfkd_fast.errors import UserError
from tfkd_fast.randomness import Purpose, random_keys


class FewImages(PartOfDataset):
    """Some training images of every class, in their order, and all test images.

    Which ones depends on their places in the whole set and on nothing else; those of a smaller number are among those
    of a larger one. (The first ones may be like each other: files are often sorted.)
    """

    def __init__(self, whole: Dataset, per_class: int) -> None:
        """`per_class`: how many of each, 1 or more.

        Raises:
            UserError, when images are read: for a class that has fewer.
        """
        super().__init__(whole, whole.classes, read_train=self._chosen, read_test=whole.read_test)
        self._per_class = per_class

    def _chosen(self) -> ImageSet:
        images = self.whole.read_train()
        keys = random_keys(len(images), Purpose.SUBSET, seed=SPLIT_SEED, epoch=0, stream=0, device=images.labels.device)
        chosen = []
        for label, name in enumerate(self.classes):
            members = (images.labels == label).nonzero().squeeze(1)
            if len(members) < self._per_class:
                raise UserError(
                    f"data.per_class is {self._per_class}, but class {name!r} has {len(members)} training images: "
                    "lower it"
                )
            chosen.append(members[keys[members].argsort(stable=True)[: self._per_class]])
        return images.subset(torch.cat(chosen).sort().values)
