"""What every data set offers, wherever its images come from."""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch

from tfkd_fast.data.datasets.seal import refuse_while_sealed
from tfkd_fast.data.images import ImageSet
from tfkd_fast.data.superclasses import find_superclasses

CHUNK = 4096
"""Images that are looked at together when statistics are taken."""


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, pixel values 0 .. 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Dataset:
    """A labelled image data set with fixed training and test parts.

    Test images are read by `read_test` and by nothing else.
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
        statistics: ChannelStatistics | None = None,
    ) -> None:
        """`statistics` are the field's usual constants; without them they are taken from the training images."""
        self.name = name
        self.classes = classes
        self.superclasses = find_superclasses(classes)  # name -> labels; None where the classes are in none
        self.image_shape = image_shape  # channels, height, width
        self.flip = flip  # whether a mirrored image still shows its class
        self._read_train = read_train
        self._read_test = read_test
        self._given_statistics = statistics

    def read_train(self) -> ImageSet:
        """The training images; read once, then kept."""
        return self._train

    def read_test(self) -> ImageSet:
        """The test images, read at every call.

        Raises:
            ImagesSealed: while a training run is being steered, see `sealed_test_images`.
        """
        refuse_while_sealed()
        return self._read_test()

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, pixel values 0 .. 1."""
        return self._statistics.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, pixel values 0 .. 1."""
        return self._statistics.std

    @cached_property
    def fingerprint(self) -> str:
        """Of all training images, see `ImageSet.fingerprint`."""
        return self._train.fingerprint()

    @cached_property
    def _train(self) -> ImageSet:
        return self._read_train()

    @cached_property
    def _statistics(self) -> ChannelStatistics:
        return self._given_statistics or channel_statistics(self._train)


class PartOfDataset(Dataset):
    """Some images of another data set, normalised as the whole is: networks of the two see the same."""

    def __init__(
        self,
        whole: Dataset,
        classes: list[str],
        *,
        read_train: Callable[[], ImageSet],
        read_test: Callable[[], ImageSet],
    ) -> None:
        super().__init__(
            whole.name, classes, whole.image_shape, flip=whole.flip, read_train=read_train, read_test=read_test
        )
        self.whole = whole

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the whole data set."""
        return self.whole.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Of the whole data set."""
        return self.whole.std


def channel_statistics(images: ImageSet) -> ChannelStatistics:
    """Population mean and standard deviation of each channel, exact sums over all pixels of all images.

    A deviation below one grey level counts as one, so that a constant channel can be divided by it (our choice).
    """
    counts = torch.zeros(images.image_shape[0], 256, dtype=torch.int64)
    for chunk in torch.arange(len(images)).split(CHUNK):
        pixels = images.subset(chunk).all_images()
        for channel, count in enumerate(counts):
            count += torch.bincount(pixels[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64)
    shares = counts / counts.sum(1, keepdim=True).double()
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]) ** 2).sum(1)
    std = variance.sqrt().clamp(min=1)
    return ChannelStatistics(tuple((mean / 255).tolist()), tuple((std / 255).tolist()))
