"""How batches reach a training step: handed over by the host, or made in the step from data on the device."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tfkd_fast.data import Batch, Loader


class Feed(Protocol):
    """The batches of an epoch, for candidates that take their steps together."""

    def start(self, epoch: int, streams: Sequence[int]) -> None:
        """Before the first step of the 0-based epoch, with the random stream of each row of the batches."""

    def advance(self) -> None:
        """Before each step: what the host has to do for it."""

    def finish(self) -> None:
        """After the last step of the epoch."""

    def batch(self, step: Tensor, size: int) -> Batch:
        """Inside the step number `step` (1,) int64: its batch of `size` samples.

        Everything in it has an axis of n candidates in front; n is 1 where all see the same.
        """


class HostFeed:
    """Takes batches from a loader. On CUDA they are copied to where a captured step reads them."""

    def __init__(self, loader: Loader, *, in_place: bool) -> None:
        self._loader, self._in_place = loader, in_place
        self._places: dict[int, Batch] = {}  # by batch size
        self._batches: Iterator[tuple[Batch, ...]]
        self._current: Batch

    def start(self, epoch: int, streams: Sequence[int]) -> None:
        self._batches = zip(*(self._loader.epoch(epoch, stream) for stream in streams), strict=True)

    def advance(self) -> None:
        batches = next(self._batches)
        if len(batches) == 1:
            self._current = Batch(*(tensor.unsqueeze(0) for tensor in batches[0]))
        else:
            self._current = Batch(*map(torch.stack, zip(*batches, strict=True)))
        if self._in_place:
            size = self._current.labels.shape[1]
            if size not in self._places:
                self._places[size] = Batch(*map(torch.empty_like, self._current))
            for place, new in zip(self._places[size], self._current, strict=True):
                place.copy_(new)
            self._current = self._places[size]

    def finish(self) -> None:
        next(self._batches, None)  # to the end, so that a loader can put away what it works with

    def batch(self, step: Tensor, size: int) -> Batch:
        return self._current


class ResidentFeed:
    """Makes batches inside the step, from images and orders that are on the device."""

    def __init__(self, loader: Loader, rows: int) -> None:
        self._loader = loader
        self._orders, self._draws = loader.orders(0, range(rows))

    def start(self, epoch: int, streams: Sequence[int]) -> None:
        for place, new in zip((self._orders, self._draws), self._loader.orders(epoch, streams), strict=True):
            place.copy_(new)

    def advance(self) -> None:
        """Nothing to do for the host."""

    def finish(self) -> None:
        """Nothing is open."""

    def batch(self, step: Tensor, size: int) -> Batch:
        positions = step * self._loader.batch_size + torch.arange(size, device=step.device)
        return self._loader.resident_batch(self._orders.index_select(1, positions), self._draws)


def make_feed(loader: Loader, rows: int, device: torch.device) -> Feed:
    """The feed that suits a loader and a device; its batches have `rows` in front."""
    if loader.is_resident:
        return ResidentFeed(loader, rows)
    return HostFeed(loader, in_place=device.type == "cuda")
