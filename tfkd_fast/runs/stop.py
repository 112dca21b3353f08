"""What ends a run before its end: Ctrl-C, the signals of clusters and closed terminals, the end of its study."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
]  # Windows has two of them
"""The signals that end a run."""

LIFELINE = "TFKD_FAST_LIFELINE"
"""The environment variable with the number of an open file, the end of a pipe that is read. This process is to end when
the other end is closed, as it is when the process that holds it has ended, however it ended. Anything but a number is
not looked at."""


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
    resumable = False
    """Whether a folder holds what was begun, so that it can be gone on with."""
    how_to_go_on = ""
    """A sentence about it, for whoever ended the command."""
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
            signal.signal(each, _ignore)  # not SIG_IGN: of one that has come by now Python would print that it is lost
        raise Stopped(number)


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """While the block runs, signals raise Stopped in it, as `Stop` says; for the main thread of a program.

    The signals are those of `SIGNALS`, but for what this process was told to ignore, as by nohup; the end of the
    process that holds the other end of `LIFELINE` counts as SIGTERM.
    """
    stop, own = Stop(), os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            stop.handle(number, frame)
        elif number == signal.SIGTERM:  # in a forked worker, which we end by this signal and no other
            os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    try:
        for number in taken:
            signal.signal(number, handle)
        lifeline = os.environ.pop(LIFELINE, "")
        if lifeline.isdecimal():
            threading.Thread(target=_follow, args=(int(lifeline), stop), daemon=True).start()
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(lifeline: int, stop: Stop) -> None:
    """Send the main thread SIGTERM when the other end of the pipe is closed, unless a signal came before."""
    with contextlib.suppress(OSError):  # the pipe is gone, so nobody waits for us to end
        os.read(lifeline, 1)
        if stop.requested is None:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _ignore(_: int, __: FrameType | None) -> None:
    """The handler of signals that come while a run ends."""


def _leave_terminal() -> None:
    """What is printed to a terminal that is gone goes nowhere, instead of failing."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
