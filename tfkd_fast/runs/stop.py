"""Signals that end a run: Ctrl-C, and those that clusters and closed terminals send."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
]  # Windows has two of them
"""The signals that end a run."""


class Stopped(BaseException):
    """A signal ended the run, as KeyboardInterrupt does."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
        """What a shell reports of a process that this signal ended."""


class Stop:
    """Whether a run is to end: a signal ends it at once, or at the end of the epoch while epochs are unsaved."""

    unsaved = False
    """Whether there is a finished epoch that no checkpoint has. A second signal ends the run all the same."""
    requested: int | None = None
    """The first signal that came."""

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.requested is not None:
            self._end(self.requested)

    def handle(self, number: int, _: FrameType | None) -> None:
        """The handler of the signals."""
        again = self.requested is not None
        self.requested = self.requested or number
        if number == getattr(signal, "SIGHUP", None):
            _leave_terminal()
        if again or not self.unsaved:
            self._end(self.requested)

    def _end(self, number: int) -> None:
        for each in SIGNALS:  # an end takes seconds at most: it is not ended in turn
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """While the block runs, signals raise Stopped in it, as `Stop` says; for the main thread of a program.

    The signals are those of `SIGNALS`, but for what this process was told to ignore, as by nohup.
    """
    stop, own = Stop(), os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            stop.handle(number, frame)
        elif number == signal.SIGTERM:  # in a forked worker, which we end by this signal and no other
            os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    try:
        for number in taken:
            signal.signal(number, handle)
        yield stop
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """What is printed to a terminal that is gone goes nowhere, instead of failing."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
