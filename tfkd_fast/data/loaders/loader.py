"""The loader: batches on the device, which are the same whatever their pixels come from."""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.data.augmentation import Augmentation, Views
from tfkd_fast.data.companions import Companions, companion_order
from tfkd_fast.data.loaders.resident import ResidentImages
from tfkd_fast.data.strong import augment_strongly
from tfkd_fast.randomness import permutation


class Batch(NamedTuple):
    """Consecutive images of an epoch, on the device."""

    images: Tensor
    """(B,C,H,W) floating point: augmented and normalised images, channels-last in memory."""
    labels: Tensor
    """(B,) int64: labels of the images."""
    indices: Tensor
    """(B,) int64: indices of the images in the set that is loaded."""


class DataStream(NamedTuple):
    """The random streams of the images that a candidate sees."""

    order: int
    """The stream of their order."""
    views: int
    """The stream of their augmentation."""


class PixelSource(Protocol):
    """A source of pixels for images that are not resident on the device."""

    name: str
    """Name of the loader, as in `data.loader`."""

    def pixels(self, batches: list[Views]) -> Iterator[Tensor]:
        """Yield the pixels (B,C,H,W) uint8 of each batch of views, on the device and channels-last.

        Args:
            batches: views, whose tensors are on the CPU.
        """


HOST = torch.device("cpu")
AS_IT_IS = Augmentation(pad=0, flip=False)


class Loader:
    """Batches of an image set. It has no position: an epoch is a function of (seed, epoch, stream)."""

    def __init__(
        self,
        source: ResidentImages | PixelSource,
        labels: Tensor,
        augmentation: Augmentation,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        """Load images of `source`; see `make_loader`, which chooses it.

        Args:
            source: resident images, or where pixels come from.
            labels: (N,) int64.
            augmentation: random windows and mirroring.
            batch_size: images of a batch; the last one of an epoch may have fewer.
            mean, std: statistics of each channel for the normalisation, pixel values 0..1.
            device: device of the batches.
            dtype: floating-point dtype of the images.
            seed: seed of order and augmentation.
        """
        self.name = source.name
        self.batch_size = self._whole_batch = batch_size
        self._part = 0, 1  # of every batch: the number of the part, and how many there are
        self._source = source
        self._labels = labels.to(device)
        self._visited = torch.arange(len(labels), device=device)
        self._augmentation = augmentation
        self._repeat_after = 0
        self._turn_of: Tensor | None = None
        self._class_groups = 1
        self._device, self._dtype, self._seed = device, dtype, seed
        self._mean, self._std = (
            torch.tensor([255 * value for value in values], device=device) for values in (mean, std)
        )

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return -(-len(self._visited) // self._whole_batch)

    def batch_sizes(self) -> list[int]:
        """Return the size of each batch of an epoch; the last one may be smaller."""
        number, parts = self._part
        return [len(range(number, len(batch), parts)) for batch in self._visited.split(self._whole_batch)]

    def with_indices(self, indices: Tensor) -> Self:
        """Return a loader that visits only the images at `indices` (M,) int64; indices in its batches do not change."""
        other = copy.copy(self)
        other._visited = indices.to(self._device)
        return other

    def with_labels(self, labels: Sequence[int]) -> Self:
        """Return a loader that visits only the images of these labels; indices in its batches do not change."""
        wanted = torch.isin(self._labels[self._visited], torch.tensor(labels, device=self._device))
        return self.with_indices(self._visited[wanted])

    def part(self, number: int, parts: int) -> Self:
        """Return a loader that visits a part of each batch, its images `number`, `number + parts`, ...; indices in its
        batches do not change. Of the last batch there may be no images, which is then left out when it is visited.
        """
        other = copy.copy(self)
        other._part = number, parts
        other.batch_size = len(range(number, self._whole_batch, parts))
        return other

    def with_turns(self, groups: Sequence[Sequence[int]]) -> Self:
        """Return a loader that shows the images of one group of labels after those of another in every epoch, each
        group in random order; a batch at the border has images of both.

        Args:
            groups: the labels of each group; together all labels that are visited.
        """
        other = copy.copy(self)
        other._turn_of = torch.zeros(1 + max(map(max, groups)), dtype=torch.int64, device=self._device)
        for number, group in enumerate(groups):
            other._turn_of[list(group)] = number
        return other

    def with_class_groups(self, size: int) -> Self:
        """Return a loader that shows the images of a class in groups of `size` in every epoch: each group at the place
        of its first image in the random order. What is left of a class is a smaller group."""
        other = copy.copy(self)
        other._class_groups = size
        return other

    def with_augmentation_period(self, epochs: int) -> Self:
        """Return a loader whose augmentation, but not its order, repeats after so many epochs; 0 means never."""
        other = copy.copy(self)
        other._repeat_after = epochs
        return other

    def epoch(self, epoch: int, stream: int = 0) -> Iterator[Batch]:
        """Yield every image once, augmented and in random order; the last batch may be smaller.

        Args:
            epoch: the epoch, counted from 0.
            stream: candidates with different streams get different orders and augmentations.
        """
        return self.visit(self.order(epoch, stream), epoch, stream)

    def order(self, epoch: int, stream: int = 0) -> Tensor:
        """Return the indices (M,) int64 in the order of an epoch, on the device where pixels are augmented."""
        return self._own(self._order_of_all(epoch, stream))

    def _own(self, order: Tensor) -> Tensor:
        """Return what is visited of an order of the whole batches."""
        number, parts = self._part
        if parts == 1:
            return order
        return order[torch.arange(len(order), device=order.device) % self._whole_batch % parts == number]

    def _order_of_all(self, epoch: int, stream: int) -> Tensor:
        device = self._device if self.is_resident else HOST
        order = permutation(len(self._visited), seed=self._seed, epoch=epoch, stream=stream, device=device)
        order = self._visited.to(device)[order]
        if self._class_groups > 1:
            order = order[_group_by_class(self._labels.to(device)[order], self._class_groups)]
        if self._turn_of is None:
            return order
        return order[self._turn_of[self._labels[order.to(self._device)]].argsort(stable=True).to(device)]

    def companion_order(self, kind: Companions, epoch: int, stream: int = 0) -> Tensor:
        """Return the indices (M,) int64 of the companions of an epoch's images; see `companions.companion_order`."""
        order, name = self._order_of_all(epoch, stream), {"seed": self._seed, "epoch": epoch, "stream": stream}
        return self._own(companion_order(kind, order, self._labels.to(order.device), self._whole_batch, **name))

    def visit(self, order: Tensor, epoch: int, stream: int = 0) -> Iterator[Batch]:
        """Yield batches of the images at `order` (M,) int64, augmented as in an epoch of a stream."""
        name = {"seed": self._seed, "epoch": self._augmented_as(epoch), "stream": stream}
        if isinstance(self._source, ResidentImages):
            return self._show(self._source.images, order, self._augmentation, **name)
        return self._load(self._source, self._augmentation.draw_views(order, **name))

    def draws(self, epoch: int, streams: Sequence[int]) -> Tensor:
        """Return the draws (n,3) int64 on the device by which `resident_batch` and `augment_strongly` augment.

        Args:
            epoch: the epoch, counted from 0.
            streams: the n streams whose augmentation is wanted.
        """
        drawn = self._augmented_as(epoch)
        return torch.stack([self._draw(seed=self._seed, epoch=drawn, stream=stream) for stream in streams])

    def resident_batch(self, indices: Tensor, draws: Tensor) -> Batch:
        """Return the augmented images at `indices` (n,B) of a resident set under draws (n,3).

        All tensors of the batch have the leading axis n. Everything happens on the device, so that a CUDA graph can
        capture it.

        Raises:
            ValueError: the images are not resident.
        """
        if not isinstance(self._source, ResidentImages):
            raise ValueError(f"the images of loader {self.name} are not resident")
        return self._batch(self._augment(self._source.images, indices, draws, self._augmentation), indices)

    def augment_strongly(self, batch: Batch, draws: Tensor) -> Batch:
        """Apply the strong augmentation of `data.strong` to a batch with a leading axis n, by `draws` (n,3)."""
        images = augment_strongly(batch.images, batch.indices, draws, mean=self._mean / 255, std=self._std / 255)
        return batch._replace(images=images)

    @property
    def is_resident(self) -> bool:
        """Whether all images are on the device."""
        return isinstance(self._source, ResidentImages)

    def in_order(self) -> Iterator[Batch]:
        """Yield every image once, in the order of the set and without augmentation; the last batch may be smaller."""
        if isinstance(self._source, ResidentImages):
            return self._show(self._source.images, self._visited, AS_IT_IS)
        return self._load(self._source, self._augmentation.plain_views(self._visited.to(HOST)))

    def _augmented_as(self, epoch: int) -> int:
        """Return the epoch that augmentation is drawn for: `epoch` modulo the augmentation period."""
        return epoch % self._repeat_after if self._repeat_after else epoch

    def _show(self, resident: Tensor, order: Tensor, augmentation: Augmentation, **name: int) -> Iterator[Batch]:
        draw = self._draw(**name)
        for indices in order.split(self.batch_size):
            yield self._batch(self._augment(resident, indices, draw, augmentation), indices)

    def _load(self, source: PixelSource, views: Views) -> Iterator[Batch]:
        """Yield batches of pixels from worker processes; what waits for the device is done before the first batch."""
        draw, indices = self._draw(), views.indices.to(self._device).split(self.batch_size)
        pixels_of_batches = source.pixels(views.batches(self.batch_size))

        def batches() -> Iterator[Batch]:
            for of_batch, pixels in zip(indices, pixels_of_batches, strict=True):
                every = torch.arange(len(pixels), device=self._device)
                yield self._batch(self._augment(pixels.permute(0, 2, 3, 1), every, draw, AS_IT_IS), of_batch)

        return batches()

    def _augment(self, images: Tensor, indices: Tensor, draw: Tensor, augmentation: Augmentation) -> Tensor:
        return ops.augment(
            images,
            indices,
            draw,
            pad=augmentation.pad,
            flip=augmentation.flip,
            mean=self._mean,
            std=self._std,
            dtype=self._dtype,
        )

    def _batch(self, images: Tensor, indices: Tensor) -> Batch:
        return Batch(images, self._labels[indices], indices)

    def _draw(self, seed: int = 0, epoch: int = 0, stream: int = 0) -> Tensor:
        """Return a draw (3,) int64, filled on the device because a copy from the host would wait for the device."""
        words = (torch.full((), value, dtype=torch.int64, device=self._device) for value in (seed, epoch, stream))
        return torch.stack(list(words))


def _group_by_class(labels: Tensor, size: int) -> Tensor:
    """Return the places (M,) int64 of labels (M,) in groups of a class, by the place of the first one of each group."""
    by_class = labels.argsort(stable=True)
    counts = labels.bincount()
    starts = (counts.cumsum(0) - counts)[labels[by_class]]
    rank = torch.arange(len(labels), device=labels.device) - starts  # of an image within its class
    first = by_class[starts + rank // size * size]
    return by_class[first.argsort(stable=True)]
