"""Calls at the same time: their threads, their results, and how they end."""

from functools import partial
from threading import Barrier, Event

import pytest
import torch

from tests.support.threads import using_threads
from tfkd_fast.threads import run_at_once, until

PATIENCE = 20.0
"""Seconds after which a call that waits for another gives up."""


@pytest.mark.parametrize(("threads", "calls", "each"), [(4, 2, 2), (3, 2, 1), (2, 3, 1), (1, 2, 1)])
@pytest.mark.parametrize("in_turn", [False, True])
def test_calls_share_the_threads_of_torch(threads: int, calls: int, each: int, in_turn: bool) -> None:
    def call(number: int, stop: Event) -> tuple[int, int]:
        return number, torch.get_num_threads()

    with using_threads(threads):
        found = run_at_once([partial(call, number) for number in range(calls)], in_turn=in_turn)
        assert torch.get_num_threads() == threads
    assert found == [(number, each) for number in range(calls)]


def test_calls_run_at_the_same_time() -> None:
    both = Barrier(2)

    def call(stop: Event) -> None:
        both.wait(PATIENCE)

    with using_threads(2):
        run_at_once([call, call])
    assert not both.broken


def test_an_error_of_one_call_stops_the_others() -> None:
    seen: list[int] = []
    begun = Event()

    def fail(stop: Event) -> None:
        begun.wait(PATIENCE)
        raise ValueError("of a call")

    def go_on(stop: Event) -> None:
        def numbers() -> range:
            begun.set()
            return range(1000)

        for number in until(stop, numbers()):
            seen.append(number)
            stop.wait(PATIENCE)

    with using_threads(2), pytest.raises(ValueError, match="of a call"):
        run_at_once([go_on, fail])
    assert seen == [0]


def test_items_without_a_stop_are_all_there() -> None:
    assert list(until(None, "abc")) == ["a", "b", "c"]
