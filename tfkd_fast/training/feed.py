"""Feeds of batches to training steps: handed over by the host, or made in the step from data on the device."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tfkd_fast.data import Batch, Companions, DataStream, Loader, Mixing, MixPartners
from tfkd_fast.data.companions import COMPANION_STREAM


class StepInput(NamedTuple):
    """The images of a step. Every tensor has an axis of n candidates in front; n is 1 where all candidates see the
    same."""

    batch: Batch
    companions: Batch | None = None
    """The companions of the images of the batch, as many as those; None for none."""
    mix_partners: MixPartners | None = None
    """The images that those of the batch were mixed with; None for unmixed images."""

    def select(self, rows: slice) -> "StepInput":
        """The images of the candidates in `rows`."""
        if len(self.batch.labels) == 1:
            return self
        return StepInput(
            Batch(*(tensor[rows] for tensor in self.batch)),
            self.companions and Batch(*(tensor[rows] for tensor in self.companions)),
            self.mix_partners and MixPartners(*(tensor[rows] for tensor in self.mix_partners)),
        )


class Feed(Protocol):
    """The batches of an epoch, for candidates that take their steps together."""

    def start(self, epoch: int, streams: Sequence[DataStream]) -> None:
        """Called before the first step of the 0-based epoch, with the random streams of each row of the batches."""

    def advance(self) -> None:
        """Called before each step, for the work of the host."""

    def finish(self) -> None:
        """Called after the last step of the epoch."""

    def read(self, step: Tensor, size: int) -> StepInput:
        """Called inside the step with the number `step` (1,) int64; returns its batch of `size` samples and their
        companions."""


class HostFeed(Feed):
    """Takes batches from a loader. On CUDA they are copied to where a captured step reads them."""

    def __init__(self, loader: Loader, companions: Companions | None, *, in_place: bool) -> None:
        self._loader, self._companions, self._in_place = loader, companions, in_place
        self._places: dict[int, list[Batch]] = {}  # by batch size
        self._batches: Iterator[tuple[Batch, ...]]
        self._current: list[Batch]
        self._draws: Tensor  # (n,3), of the companions

    def start(self, epoch: int, streams: Sequence[DataStream]) -> None:
        visits = []
        for stream in streams:
            order = self._loader.order(epoch, stream.order)
            visits.append(self._loader.visit(order, epoch, stream.views))
            if self._companions:
                beside = self._loader.companion_order(self._companions, epoch, stream.order)
                visits.append(self._loader.visit(beside, epoch, stream.views + COMPANION_STREAM))
        self._batches = zip(*visits, strict=True)
        self._draws = self._loader.draws(epoch, [stream.views + COMPANION_STREAM for stream in streams])

    def advance(self) -> None:
        batches, kinds = next(self._batches), 2 if self._companions else 1
        self._current = [_stack_batches(batches[kind::kinds]) for kind in range(kinds)]
        if self._companions == "strong":
            self._current[1] = self._loader.augment_strongly(self._current[1], self._draws)
        if self._in_place:
            size = self._current[0].labels.shape[1]
            if size not in self._places:
                self._places[size] = [Batch(*map(torch.empty_like, batch)) for batch in self._current]
            for places, new in zip(self._places[size], self._current, strict=True):
                for place, tensor in zip(places, new, strict=True):
                    place.copy_(tensor)
            self._current = self._places[size]

    def finish(self) -> None:
        next(self._batches, None)  # to the end, so that a loader can put away what it works with

    def read(self, step: Tensor, size: int) -> StepInput:
        return StepInput(self._current[0], self._current[1] if self._companions else None)


def _stack_batches(batches: Sequence[Batch]) -> Batch:
    if len(batches) == 1:
        return Batch(*(tensor.unsqueeze(0) for tensor in batches[0]))
    return Batch(*map(torch.stack, zip(*batches, strict=True)))


class ResidentFeed(Feed):
    """Makes batches inside the step, from images and orders that are on the device."""

    def __init__(self, loader: Loader, companions: Companions | None, rows: int) -> None:
        self._loader, self._companions = loader, companions
        self._plans = [tensor.clone() for tensor in self._plan(0, [DataStream(row, row) for row in range(rows)])]

    def start(self, epoch: int, streams: Sequence[DataStream]) -> None:
        for place, new in zip(self._plans, self._plan(epoch, streams), strict=True):
            place.copy_(new)

    def advance(self) -> None:
        """Nothing to do for the host."""

    def finish(self) -> None:
        """Nothing has to be closed."""

    def read(self, step: Tensor, size: int) -> StepInput:
        batches = [
            self._loader.resident_batch(self._indices(orders, step, size), draws)
            for orders, draws in zip(self._plans[::2], self._plans[1::2], strict=True)
        ]
        if self._companions == "strong":
            batches[1] = self._loader.augment_strongly(batches[1], self._plans[3])
        return StepInput(batches[0], batches[1] if self._companions else None)

    def _indices(self, orders: Tensor, step: Tensor, size: int) -> Tensor:
        """Indices (n,size) of a batch in orders (n,M): a whole one by its number, or the rest at the end."""
        whole = orders.shape[1] // self._loader.batch_size * self._loader.batch_size
        if size < self._loader.batch_size:
            return orders[:, whole:]
        return orders[:, :whole].unflatten(1, (-1, size)).index_select(1, step).squeeze(1)

    def _plan(self, epoch: int, streams: Sequence[DataStream]) -> list[Tensor]:
        """Orders (n,M) and draws (n,3), of the images and then of their companions."""
        orders = [self._loader.order(epoch, stream.order) for stream in streams]
        plan = [torch.stack(orders), self._loader.draws(epoch, [stream.views for stream in streams])]
        if self._companions:
            beside = [self._loader.companion_order(self._companions, epoch, stream.order) for stream in streams]
            plan += [
                torch.stack(beside),
                self._loader.draws(epoch, [stream.views + COMPANION_STREAM for stream in streams]),
            ]
        return plan


class MixedFeed(Feed):
    """Mixes the images of another feed in pairs."""

    def __init__(self, feed: Feed, mixing: Mixing, rows: int, steps: int, device: torch.device) -> None:
        self._feed, self._mixing, self._steps = feed, mixing, steps
        self._plans = torch.empty(rows, steps, 3, device=device)

    def start(self, epoch: int, streams: Sequence[DataStream]) -> None:
        self._feed.start(epoch, streams)
        self._plans.copy_(torch.stack([self._mixing.plan(self._steps, epoch, stream.order) for stream in streams]))

    def advance(self) -> None:
        self._feed.advance()

    def finish(self) -> None:
        self._feed.finish()

    def read(self, step: Tensor, size: int) -> StepInput:
        inputs = self._feed.read(step, size)
        batch, mix_partners = self._mixing.mix(inputs.batch, self._plans.index_select(1, step).squeeze(1))
        return inputs._replace(batch=batch, mix_partners=mix_partners)


def make_feed(
    loader: Loader, companions: Companions | None, mixing: Mixing | None, rows: int, device: torch.device
) -> Feed:
    """The feed that suits a loader and a device; its batches have `rows` in front."""
    feed: Feed
    if loader.is_resident:
        feed = ResidentFeed(loader, companions, rows)
    else:
        feed = HostFeed(loader, companions, in_place=device.type == "cuda")
    return MixedFeed(feed, mixing, rows, len(loader), device) if mixing else feed
