"""The ranks of a run as real processes over loopback, forked from one that has imported what takes long to import."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from tfkd_fast.runs.precedence import Table

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["torch._dynamo", "tfkd_fast.api", "tfkd_fast.cli.app", "tfkd_fast.cli.display"])


class Rank(NamedTuple):
    """A process, and the file of what it prints."""

    process: BaseProcess
    printed: Path

    def end(self) -> tuple[int | None, str]:
        """Wait for its end; returns exit code and what it printed."""
        self.process.join()
        return self.process.exitcode, self.printed.read_text()

    def number(self) -> int:
        """The number of the process."""
        assert self.process.pid is not None
        return self.process.pid


def start_ranks(size: int, folder: Path, calls: Sequence[Callable[[], object] | None]) -> list[Rank]:
    """Start a process for each rank, which does what is called for it; None for one that never comes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank, call in enumerate(calls):
        if call is not None:
            place = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables = {name: str(value) for name, value in place.items()}
            printed = folder / f"printed-{size}-{rank}.txt"
            process = FORKED.Process(target=_become, args=(variables, call, printed))
            process.start()
            started.append(Rank(process, printed))
    return started


def run_ranks(size: int, folder: Path, call: Callable[[], object]) -> list[tuple[int | None, str]]:
    """Run the same in all ranks to their end; returns exit code and what was printed of each."""
    return [rank.end() for rank in start_ranks(size, folder, [call] * size)]


# What a rank does.


def command(*arguments: str) -> None:
    """Run `tfkd-fast` with these arguments."""
    from tfkd_fast.cli import main

    sys.argv = ["tfkd-fast", *arguments]
    main()


def restarted_command(*arguments: str) -> None:
    """The same where torchrun has started the ranks again."""
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    command(*arguments)


def impatient_command(*arguments: str) -> None:
    """The same by a rank that waits a second for an answer of rank 0."""
    from tfkd_fast.training import ranks

    ranks.STORE_PATIENCE = 1.0
    command(*arguments)


def stop_once_others_are_here(*others: int) -> None:
    """Be a rank 0 that is stopped (SIGSTOP) while it waits for further ranks."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=True, wait_for_workers=False)
    if others:
        store.wait([f"tfkd-fast/0/here/{rank}" for rank in others])
    os.kill(os.getpid(), signal.SIGSTOP)


def train(recipe: Table | str, out: Path) -> None:
    """Train a run by tables or a recipe file, without its report."""
    from tfkd_fast import api
    from tfkd_fast.training.ranks import join_ranks

    with join_ranks() as ranks:
        api.train(recipe, out, ranks=ranks)


def resume(out: Path) -> None:
    """Go on with a run, without its report."""
    from tfkd_fast import api
    from tfkd_fast.training.ranks import join_ranks

    with join_ranks() as ranks:
        api.resume(out, ranks=ranks)


def _become(variables: dict[str, str], call: Callable[[], object], printed: Path) -> None:
    import torch

    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ |= variables
    torch.set_num_threads(1)
    call()
