"""Calls at the same time, on threads that share torch's."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

import torch

T = TypeVar("T")


def threads_of_each(calls: int) -> int:
    """The number of threads of each of some calls at the same time, which share torch's."""
    threads = torch.get_num_threads()
    return threads // min(threads, calls)


def run_at_once(calls: Sequence[Callable[[Event], T]], *, in_turn: bool = False) -> list[T]:
    """Run functions at the same time, on as many threads as torch uses, which share its cores; returns their results.

    The first error stops all: the event that each function gets is set, see `until`.

    Args:
        calls: functions of that event.
        in_turn: whether they run one after the other, each on its share of the cores as well, so that the numbers are
            the same. In some versions of torch (2.11) no thread may call what is compiled while another compiles.
    """
    threads, each, stop = torch.get_num_threads(), threads_of_each(len(calls)), Event()
    try:
        # new threads each time: in MKL a number of threads is set for the whole process
        at_once = 1 if in_turn else min(threads, len(calls))
        with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            futures = [pool.submit(call, stop) for call in calls]
            try:
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()  # raises what a thread raised
            except BaseException:  # KeyboardInterrupt, too
                stop.set()
                raise
            return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)


def until(stop: Event | None, items: Iterable[T]) -> Iterator[T]:
    """Yield items until `stop` is set.

    Raises:
        CancelledError: it was set.
    """
    for item in items:
        if stop is not None and stop.is_set():
            raise CancelledError
        yield item
