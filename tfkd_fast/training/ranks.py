"""The processes that train one run together: which candidates each of them has, and what they tell each other.

A process has a number, its rank. Every rank holds all candidates and the same method, trains and judges its own
candidates, and is sent those of the others; rank 0 alone writes. How ranks train the same candidates together is in
`shared_batches`.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.runs.stop import Stopped

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

TIMEOUT = 1800
"""Seconds that ranks wait for each other unless told otherwise, as torch has it: longer than a candidate's epoch."""

STORE_PATIENCE = 10.0
"""Seconds in which the store of the ranks answers, or else its process is taken for lost."""


class Ranks:
    """A process that trains a run alone. All candidates are its own, and there is nobody to tell."""

    rank = 0
    """The number of this process."""
    size = 1
    """The number of processes."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def own(self, candidates: int) -> range:
        """The slots of the candidates that this process trains and judges; those of the ranks follow each other."""
        return _share(self.rank, self.size, candidates)

    def claim(self, device: torch.device) -> None:
        """Take the GPU of this process, where the run computes on CUDA.

        Raises:
            UserError: there are fewer GPUs than processes on this machine.
        """

    def gather(self, own: Sequence[T]) -> list[T]:
        """The values of all processes in the order of ranks."""
        return list(own)

    def of_candidates(self, own: Sequence[T]) -> list[T]:
        """A value for each candidate in the order of slots, from what each process has for its own."""
        return self.gather(own)

    def decide(self, choose: Callable[[], T]) -> T:
        """What rank 0 chooses; the others do not call the function."""
        return choose()

    def exchange(self, stacks: Sequence[Tensor], candidates: int) -> None:
        """Copy the slices of the first candidates from their owners to all, in tensors (P,...), in place."""

    def agree(self, values: Callable[[], Mapping[str, object]], remedy: str) -> None:
        """Raise UserError, which ends with a remedy, if a value is not the same on all processes; a process alone does
        not call the function."""

    def copy(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Copy tensors from their owner to all, in place and in one message."""

    def add(self, tensor: Tensor, count: int | None = None) -> None:
        """Sum a contiguous tensor over the first `count` processes, or all, in place; only these take part."""

    def stack(self, tensor: Tensor, count: int | None = None) -> Tensor:
        """The tensors (count,...) of the first `count` processes, or of all; only these take part."""
        return tensor.unsqueeze(0)


ALONE = Ranks()
"""The only process of a run."""


class RankLost(UserError):
    """Another process of the run ended, hangs, or never came."""

    def __init__(self, sentence: str, lost: Sequence[int]) -> None:
        super().__init__(sentence)
        self.lost = tuple(lost)
        """The ranks that are missing, or may be."""


class SharedTable:
    """Names and values that all ranks see, in a store that the process of rank 0 has, or that of torchrun.

    Torch waits for an answer without end where that process is stopped. Here it is a RuntimeError, as where the process
    is gone.
    """

    def __init__(self, store: "Store") -> None:
        self._store = store
        self.silent = False
        """Whether a question was not answered in time; no other one is asked then."""

    def set(self, name: str, value: str) -> None:
        """Give a name a value."""
        self._ask(lambda: self._store.set(name, value))

    def get(self, name: str) -> str:
        """The value of a name that has one."""
        return self._ask(lambda: self._store.get(name)).decode()

    def has(self, names: Sequence[str]) -> bool:
        """Whether all these names have values."""
        return self._ask(lambda: self._store.check(list(names)))

    def _ask(self, question: Callable[[], T]) -> T:
        if not self.silent:
            with contextlib.suppress(TimeoutError):
                return _answer(question, STORE_PATIENCE)
            self.silent = True
        raise RuntimeError("the store of the ranks does not answer")


class DistributedRanks(Ranks):
    """Several processes, connected by torch.distributed: gloo on the CPU, NCCL between GPUs."""

    def __init__(self, rank: int, size: int, store: "Store", timeout: float) -> None:
        """Wait for all ranks; see `join_ranks`."""
        self.rank, self.size = rank, size
        self._table, self._timeout = SharedTable(store), timeout
        self._groups: dict[int, dist.ProcessGroup] = {}
        self._wait_for_all()
        both = torch.cuda.is_available() and dist.is_nccl_available()
        with self._name_lost():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if both else "gloo",
                store=dist.PrefixStore("group", store),  # type: ignore[attr-defined]
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout),
            )

    def claim(self, device: torch.device) -> None:
        if device.type != "cuda":
            return
        number, count = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if number >= count:
            raise UserError(f"there is no GPU for each process, of which {count} are here: start {count}")
        torch.cuda.set_device(number)

    def gather(self, own: Sequence[T]) -> list[T]:
        gathered: list[Any] = [None] * self.size
        with self._name_lost():
            dist.all_gather_object(gathered, list(own))
        return [value for of_rank in gathered for value in of_rank]

    def decide(self, choose: Callable[[], T]) -> T:
        chosen: list[Any] = [choose() if self.first else None]
        with self._name_lost():
            dist.broadcast_object_list(chosen, src=0)
        decision: T = chosen[0]
        return decision

    @torch.no_grad()
    def exchange(self, stacks: Sequence[Tensor], candidates: int) -> None:
        for owner in range(self.size):
            self.copy([stack[slot] for slot in _share(owner, self.size, candidates) for stack in stacks], owner)

    @torch.no_grad()
    def copy(self, tensors: Sequence[Tensor], owner: int) -> None:
        pieces = [tensor for tensor in tensors if tensor.numel()]
        if not pieces:
            return
        content = torch.cat([piece.reshape(-1).view(torch.uint8) for piece in pieces])
        with self._name_lost():
            dist.broadcast(content, src=owner)
        if owner != self.rank:
            for piece, received in zip(pieces, content.split([piece.nbytes for piece in pieces]), strict=True):
                piece.copy_(received.clone().view(piece.dtype).view(piece.shape))  # a clone is aligned

    def add(self, tensor: Tensor, count: int | None = None) -> None:
        with self._name_lost():
            dist.all_reduce(tensor, group=self._first(count or self.size))

    def stack(self, tensor: Tensor, count: int | None = None) -> Tensor:
        count = count or self.size
        rows = tensor.new_empty((count, *tensor.shape))
        with self._name_lost():
            dist.all_gather(list(rows.unbind()), tensor, group=self._first(count))
        return rows

    def _first(self, count: int) -> dist.ProcessGroup | None:
        """The group of the first `count` processes, which form it when they first need it; None for all."""
        if count == self.size:
            return None
        if count not in self._groups:
            wait = timedelta(seconds=self._timeout)
            group = dist.new_group(range(count), timeout=wait, use_local_synchronization=True)
            assert isinstance(group, dist.ProcessGroup)  # this process is one of them
            self._groups[count] = group
        return self._groups[count]

    def agree(self, values: Callable[[], Mapping[str, object]], remedy: str) -> None:
        first, *others = self.gather([dict(values())])
        for rank, other in enumerate(others, start=1):
            for name, value in first.items():
                if other[name] != value:
                    raise UserError(f"rank {rank} has {name} {other[name]!r} and rank 0 has {value!r}: {remedy}")

    # Faults.

    def leave(self, sentence: str, kind: str = "fault") -> None:
        """Tell the others why this process ends. The first one, with which the store may end, waits for them to read
        it."""
        with contextlib.suppress(RuntimeError, Stopped):  # torchrun stops the first one once another has ended
            self._table.set(f"{kind}/{self.rank}", sentence)
            self._table.set(f"read/{self.rank}", "")  # nobody has to wait for this one
            if self.first and kind == "fault":
                dist.destroy_process_group()  # the others notice that
                self._wait_for_readers(self._others())

    def _wait_for_readers(self, alive: Sequence[int]) -> None:
        """Wait until other ranks have read what there is to read, or for as long as the store has patience."""
        keys, until = [f"read/{rank}" for rank in alive], time.monotonic() + STORE_PATIENCE
        while not self._table.has(keys) and time.monotonic() < until:
            time.sleep(0.05)

    def told_by_other(self, kind: str = "fault") -> str | None:
        """Why another process ended, a "fault" or a "stop", if it told and the store is still there."""
        with contextlib.suppress(RuntimeError):
            for rank in self._others():
                if self._table.has([f"{kind}/{rank}"]):
                    return f"rank {rank}: {self._table.get(f'{kind}/{rank}')}"
        return None

    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def _wait_for_all(self) -> None:
        deadline, missing = time.monotonic() + self._timeout, self._others()
        try:
            self._table.set(f"here/{self.rank}", "")
            while missing := [rank for rank in missing if not self._table.has([f"here/{rank}"])]:
                if time.monotonic() > deadline:
                    raise RankLost(
                        f"{_ranks(missing)} of {self.size} did not come within {self._timeout:g} seconds: start all "
                        "ranks, or wait longer with --rank-timeout",
                        missing,
                    )
                time.sleep(0.02)
        except RuntimeError:  # the table has ended, with rank 0: it waited as long, or was lost itself
            others, what = [rank for rank in missing if rank], "fell silent" if self._table.silent else "ended"
            who = f"{_ranks(others)} of {self.size} did not come before rank 0 {what}" if others else f"rank 0 {what}"
            raise RankLost(f"{who}: see what rank 0 printed, and start all ranks", [0, *others]) from None

    @contextmanager
    def _name_lost(self) -> Iterator[None]:
        """Context manager for a call in which all ranks take part; RankLost if one does not."""
        started = time.monotonic()
        try:
            yield
        except RuntimeError:  # torch has no other one for a peer that is gone, nor does it name it
            waited = time.monotonic() - started >= 0.9 * self._timeout
            raise self._lost(waited=waited) from None

    def _lost(self, *, waited: bool) -> RankLost:
        """The error about ranks that are missing in a call: those that are alive notice it, too, and say so."""
        fault, silent = None, [0]
        with contextlib.suppress(RuntimeError):
            self._table.set(f"noticed/{self.rank}", "")
            deadline = time.monotonic() + self._timeout
            while True:
                fault = self.told_by_other() or self.told_by_other("stop")
                silent = [rank for rank in self._others() if not self._table.has([f"noticed/{rank}"])]
                if fault or len(silent) <= 1 or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            self._table.set(f"read/{self.rank}", "")
            if self.first and not fault:  # the table may end with this process
                self._wait_for_readers([rank for rank in self._others() if rank not in silent])
        if fault:
            return RankLost(fault, [])
        what = f"did not answer within {self._timeout:g} seconds" if waited else "ended"
        who = _ranks(silent) if silent else "the connection of the ranks"
        return RankLost(
            f"{who} {what}: see what it printed; --resume RUN_DIR goes on from the last checkpoint, with any number of "
            "processes",
            silent,
        )


@contextmanager
def join_ranks(timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """Context manager that connects this process with the others of its run, where it is one of several.

    torchrun starts such processes; any other program may, if it sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and
    LOCAL_RANK, the number of the GPU.

    Args:
        timeout: seconds that the processes wait for each other: longer than any of them takes for its candidates in an
            epoch.

    Raises:
        UserError: the environment is not that of a rank.
        RankLost: a rank did not come, ended, or did not answer.
    """
    if (os.environ.get("WORLD_SIZE") or "1") == "1":
        yield ALONE
        return
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    ranks = DistributedRanks(rank, size, _connect_store(rank, timeout), timeout)
    try:
        yield ranks
    except RankLost:
        raise
    except UserError as error:
        ranks.leave(str(error))
        raise
    except Stopped as stopped:  # torchrun ends all ranks where one has failed
        if fault := ranks.told_by_other():
            raise UserError(fault) from None
        ranks.leave(f"it was stopped by {stopped}", "stop")
        raise
    dist.destroy_process_group()


def _connect_store(rank: int, timeout: float) -> "Store":
    """The table of names and values that the ranks share; the process of rank 0 has it, or that of torchrun."""
    host, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT")
    if not host:
        raise UserError("WORLD_SIZE is above 1 and MASTER_ADDR is not set: start the ranks with torchrun")
    of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves, wait = rank == 0 and not of_torchrun, timedelta(seconds=timeout)
    store_of = dist.TCPStore  # type: ignore[attr-defined]
    connect = partial(store_of, host, port, is_master=serves, timeout=wait, wait_for_workers=False)
    try:
        store = _answer(connect, timeout + STORE_PATIENCE)
    except (RuntimeError, TimeoutError) as error:
        if serves:
            reason = next(iter(str(error).splitlines()), "no answer")
            raise UserError(f"rank 0 cannot listen at {host}:{port} ({reason}): name another MASTER_PORT") from None
        raise RankLost(
            f"rank 0 did not come within {timeout:g} seconds: start it, at MASTER_ADDR and MASTER_PORT, {host}:{port}",
            [0],
        ) from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"tfkd-fast/{attempt}", store)  # type: ignore[attr-defined]


def _answer(question: Callable[[], T], seconds: float) -> T:
    """What a call returns or raises; TimeoutError where it takes longer, and goes on by itself."""
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer.result(seconds)


def _number(variable: str) -> int:
    value = os.environ.get(variable, "")
    if not value.isdecimal():
        raise UserError(f"WORLD_SIZE is above 1 and {variable} is {value!r}, no number: start the ranks with torchrun")
    return int(value)


def _share(rank: int, size: int, candidates: int) -> range:
    """The slots of one rank: a block, of which the first ranks have the larger ones."""
    each, more = divmod(candidates, size)
    first = rank * each + min(rank, more)
    return range(first, first + each + (rank < more))


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank {' or '.join(map(str, numbers))}"
