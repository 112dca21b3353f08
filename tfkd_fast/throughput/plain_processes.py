"""Several students by hand: a process for each, which trains by the loop written by hand with one thread."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from threading import Barrier, BrokenBarrierError

import torch

from tfkd_fast.device import keep_freed_memory
from tfkd_fast.throughput.by_hand import careful_epoch
from tfkd_fast.throughput.workload import Workload

START_SECONDS, EPOCH_SECONDS, END_SECONDS = 300.0, 3_600.0, 10.0
"""How long a process may take to start, for an epoch, and to end."""


@contextmanager
def plain_processes(workload: Workload, count: int) -> Iterator[Callable[[], None]]:
    """Start processes that wait; the function has all of them train an epoch, and returns when the last has ended.

    Raises:
        RuntimeError: from the function, where a process has failed.
    """
    context = get_context("spawn")
    barrier = context.Barrier(count + 1)
    processes = [context.Process(target=_train, args=(workload, barrier), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()

    def run() -> None:
        try:
            barrier.wait(START_SECONDS)
            barrier.wait(EPOCH_SECONDS)
        except BrokenBarrierError:
            raise RuntimeError("a process of the loop written by hand failed, or took too long") from None

    try:
        yield run
    finally:
        barrier.abort()
        for process in processes:
            process.join(END_SECONDS)
            process.terminate()


def _train(workload: Workload, barrier: Barrier) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as for what they are measured beside
    try:
        epoch = careful_epoch(workload)
        with suppress(BrokenBarrierError):  # so the parent ends it
            while True:
                barrier.wait()
                epoch()
                barrier.wait()
    finally:
        barrier.abort()
