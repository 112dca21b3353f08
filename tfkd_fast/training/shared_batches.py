"""Processes that share the batches of a run: each computes its part of every batch, and all take the same step.

The gradient of the whole batch is the sum of those of its parts, each weighted by its share of the images.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from tfkd_fast.data import Loader
from tfkd_fast.models import SynchronisedNorms
from tfkd_fast.training.ranks import Ranks

T = TypeVar("T")


class SharedBatches(Ranks):
    """The processes of a run that all train every candidate, one after the other. What they hold of a candidate is the
    same; where it may differ in the last bits, or by the statistics of batch norm, it is that of rank 0."""

    def __init__(self, processes: Ranks, *, synchronise: bool) -> None:
        """`synchronise`: whether batch norm has the statistics of the whole batch or of each part by itself."""
        self.rank, self.size = processes.rank, processes.size
        self._processes, self._synchronise = processes, synchronise

    def own(self, candidates: int) -> range:
        return range(candidates)

    def gather(self, own: Sequence[T]) -> list[T]:
        return self._processes.gather(own)

    def of_candidates(self, own: Sequence[T]) -> list[T]:
        return self.decide(lambda: list(own))

    def decide(self, choose: Callable[[], T]) -> T:
        return self._processes.decide(choose)

    def exchange(self, stacks: Sequence[Tensor], candidates: int) -> None:
        self._processes.copy([stack[slot] for slot in range(candidates) for stack in stacks], owner=0)

    def agree(self, values: Callable[[], Mapping[str, object]], remedy: str) -> None:
        self._processes.agree(values, remedy)

    def add(self, tensor: Tensor, count: int | None = None) -> None:
        self._processes.add(tensor, count)

    def part(self, loader: Loader) -> Loader:
        """The loader of this process's part of each batch: of a small batch it may be empty, but for rank 0."""
        return loader.part(self.rank, self.size)

    def norms(self, images: int) -> AbstractContextManager[object]:
        """Context manager in which the processes that have a part of a batch of so many images compute it."""
        if not self._synchronise:
            return nullcontext()
        return SynchronisedNorms(_First(self._processes, min(images, self.size)))

    def exchange_rows(self, tables: Sequence[Tensor], loader: Loader, epoch: int, stream: int) -> None:
        """Copy rows from the process that was shown their image in an epoch to all, in tables (N,...), in place."""
        for owner in range(self.size):
            rows = loader.part(owner, self.size).order(epoch, stream)
            contents = [table[rows] for table in tables]
            self._processes.copy(contents, owner)
            for table, content in zip(tables, contents, strict=True):
                table[rows] = content


@dataclass(frozen=True)
class _First:
    """The first `count` processes, as `SynchronisedNorms` knows them."""

    processes: Ranks
    count: int

    def stack(self, tensor: Tensor) -> Tensor:
        return self.processes.stack(tensor, self.count)

    def add(self, tensor: Tensor) -> None:
        self.processes.add(tensor, self.count)
