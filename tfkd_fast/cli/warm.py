"""`python -m tfkd_fast.cli.warm SOCKET FOLDER`: a process that has imported what a run needs, and forks one for each.

A study starts it (`study/executors/local.py`), because imports take longer than a short run. It does nothing but import
and fork: no thread, no computation, no CUDA, so that a forked process goes on as one does that was started for its run.
FOLDER is that of the study, for whoever lists processes.

Lines of JSON go through the socket, one a message: {"start": NUMBER, "arguments": [...], "log": PATH} forks a process
that runs `tfkd-fast` with these arguments and appends what it prints to the log, {"signal": SIGNAL, "to": NUMBER} sends
it a signal, and {"ended": NUMBER, "code": CODE} comes back when it has ended, -SIGNAL if a signal ended it. When the
other side closes the socket this process ends; those that it forked go on.
"""

import json
import os
import select
import signal
import socket
import sys
from typing import Any

from tfkd_fast.cli import imports, main
from tfkd_fast.runs.stop import SIGNALS
from tfkd_fast.strict_json import to_json

POLL = 0.02
"""Seconds between two looks at the processes."""


def import_all() -> None:
    """Import what a run imports, except for what only some runs want."""
    with imports():  # no process copies memory to look for garbage in them
        import torch.fx.experimental.symbolic_shapes  # noqa: F401 - autograd imports it

        import tfkd_fast.api
        import tfkd_fast.cli.app
        import tfkd_fast.cli.display
        import tfkd_fast.report  # noqa: F401


def serve(channel: socket.socket) -> list[str] | None:
    """Do what comes through the socket until it is closed; returns None, or in a forked process its arguments."""
    before = {number: signal.signal(number, _ignore) for number in SIGNALS}  # the study asks its runs to end, not us
    import_all()
    running: dict[int, int] = {}
    requests = b""
    while True:
        readable, _, _ = select.select([channel], [], [], POLL if running else None)
        if readable:
            received = channel.recv(1 << 16)
            if not received:
                return None
            *lines, requests = (requests + received).split(b"\n")
            for request in map(json.loads, lines):
                if "signal" in request:
                    if (child := running.get(request["to"])) is not None:
                        os.kill(child, request["signal"])
                    continue
                signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child has handlers of its own
                running[request["start"]] = child = os.fork()
                if child == 0:
                    for number, handler in before.items():
                        signal.signal(number, handler)
                    _become(request, channel)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                if child == 0:
                    return list(request["arguments"])
        for number, child in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                del running[number]
                answer = {"ended": number, "code": os.waitstatus_to_exitcode(status)}
                channel.sendall(to_json(answer).encode() + b"\n")


def _become(request: dict[str, Any], channel: socket.socket) -> None:
    """Take the place of a process that was started for this run: a process group of its own, its output in the log."""
    channel.close()
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for file, stream in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(file, stream)
    os.close(nothing)
    os.close(log)


def _ignore(*_: object) -> None:
    """The handler of signals: not SIG_IGN, which a run would take for an order to ignore them, too."""


if __name__ == "__main__":
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        sys.argv = ["tfkd-fast", *arguments]
        main()
