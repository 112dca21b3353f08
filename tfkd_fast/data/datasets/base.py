"""The data set interface, and statistics of its channels."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tfkd_fast.data.datasets.identity import DataIdentity
from tfkd_fast.data.datasets.seal import refuse_while_sealed
from tfkd_fast.data.images import ImageSet
from tfkd_fast.data.superclasses import find_superclasses

CHUNK = 2**24
"""Bytes of images that `channel_statistics` reads at a time."""


class ChannelStatistics(NamedTuple):
    """Statistics of the pixels of each channel, with pixel values in 0..1."""

    mean: tuple[float, ...]
    """Mean of each channel."""
    std: tuple[float, ...]
    """Standard deviation of each channel."""


class Dataset:
    """A labelled image data set with fixed training and test parts.

    Test images are read by `read_test` only.
    """

    def __init__(
        self,
        name: str,
        classes: list[str],
        image_shape: tuple[int, int, int],
        *,
        flip: bool,
        read_train: Callable[[], ImageSet],
        read_test: Callable[[], ImageSet],
        hash_test: Callable[[], str] | None = None,
        statistics: ChannelStatistics | None = None,
        reading: str = "",
        parts: str = "",
    ) -> None:
        """Describe a data set; images are read when they are first used.

        Args:
            name: the name in recipes.
            classes: C class names in label order.
            image_shape: channels, height and width.
            flip: whether a mirrored image still shows its class.
            read_train, read_test: read the images of a part.
            hash_test: returns a fingerprint of labels and content of the test part; it decodes no image, because it is
                called while test images are sealed. None if there is no such fingerprint.
            statistics: the usual constants of the field; None to compute them from the training images.
            reading: what happens to the pixels of the files, in words; empty if they stay as they are.
            parts: how training and test images were told apart, in words; empty if the files name both.
        """
        self.name = name
        self.classes = classes
        self.superclasses = find_superclasses(classes)  # None for other classes than those of CIFAR-100
        self.image_shape = image_shape
        self.flip = flip
        self.reading = reading
        self.parts = parts
        self._read_train = read_train
        self._read_test = read_test
        self._hash_test = hash_test
        self._given_statistics = statistics

    def read_train(self) -> ImageSet:
        """Return the training images, which are read at the first call and kept."""
        return self._train

    def read_test(self) -> ImageSet:
        """Return the test images, which are read at every call.

        Raises:
            ImagesSealed: a training run is in progress, see `sealed_test_images`.
        """
        refuse_while_sealed()
        return self._read_test()

    def refuse_unusable_test(self) -> None:
        """Raise UserError if the test images could not be tested on, and tell nothing else of them.

        It is asked before training, so that no run is lost to a broken test image. Every image is decoded once, which
        costs as much as the reading of the test at the end of a run does.

        Raises:
            UserError: an image or a label cannot be read.
            ImagesSealed: a training run is in progress.
        """
        self.read_test().refuse_unreadable()

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, pixel values 0..1."""
        return self._statistics.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, pixel values 0..1."""
        return self._statistics.std

    @cached_property
    def identity(self) -> DataIdentity:
        """What says whether another data set is the same one. Test images are hashed, not looked at."""
        return DataIdentity(
            classes=tuple(self.classes),
            image_shape=self.image_shape,
            mean=self.mean,
            std=self.std,
            training_data=self.fingerprint,
            test_data=self._hash_test() if self._hash_test else "",
        )

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of all training images, see `ImageSet.fingerprint`."""
        return self._train.fingerprint()

    @cached_property
    def _train(self) -> ImageSet:
        return self._read_train()

    @cached_property
    def _statistics(self) -> ChannelStatistics:
        return self._given_statistics or channel_statistics(self._train)


class PartOfDataset(Dataset):
    """A subset of another data set, with the normalisation of the whole, so that networks of both can be exchanged."""

    def __init__(
        self,
        whole: Dataset,
        classes: list[str],
        *,
        read_train: Callable[[], ImageSet],
        read_test: Callable[[], ImageSet],
    ) -> None:
        super().__init__(
            whole.name,
            classes,
            whole.image_shape,
            flip=whole.flip,
            read_train=read_train,
            read_test=read_test,
            hash_test=whole._hash_test,
            reading=whole.reading,
            parts=whole.parts,
        )
        self.whole = whole

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the whole data set, pixel values 0..1."""
        return self.whole.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the whole data set, pixel values 0..1."""
        return self.whole.std


def choose_images(images: ImageSet, places: Tensor) -> ImageSet:
    """Return the images at `places` (M,) int64; those that the data set holds out are held out of them, too."""
    chosen = images.subset(places)
    chosen.held_out = None if images.held_out is None else images.held_out[places]
    return chosen


def channel_statistics(images: ImageSet) -> ChannelStatistics:
    """Return the population mean and standard deviation of each channel, from exact sums over all pixels of all images.

    A deviation below one grey level is raised to one, so that a constant channel can be divided by it (our choice).
    """
    counts = torch.zeros(images.image_shape[0], 256, dtype=torch.int64)
    for chunk in torch.arange(len(images)).split(max(1, CHUNK // math.prod(images.image_shape))):
        pixels = images.subset(chunk).all_images()
        for channel, count in enumerate(counts):
            count += torch.bincount(pixels[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64)
    shares = counts / counts.sum(1, keepdim=True).double()
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]) ** 2).sum(1)
    std = variance.sqrt().clamp(min=1)
    return ChannelStatistics(tuple((mean / 255).tolist()), tuple((std / 255).tolist()))
