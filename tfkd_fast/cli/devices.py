"""`train` in several processes: started by torchrun, or by `--devices N` through it; which of them prints."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from tfkd_fast.errors import Notice, UserError
from tfkd_fast.machine import threads_per_process
from tfkd_fast.runs.stop import SIGNALS, Stopped

if TYPE_CHECKING:
    from tfkd_fast.training.ranks import Ranks


def is_rank() -> bool:
    """Whether this process is one of several that torchrun, or another program, started for a run."""
    return (os.environ.get("WORLD_SIZE") or "1") != "1"


def prints() -> bool:
    """Whether this process of `train` prints: of several, the first one, and one whose number nobody set."""
    rank = os.environ.get("RANK", "")
    return not (is_rank() and rank.isdecimal() and int(rank) > 0)


def was_restarted() -> bool:
    """Whether torchrun has started the processes again, because one of them failed."""
    return is_rank() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextmanager
def join_for_command(timeout: float) -> Iterator["Ranks"]:
    """Context manager as `join_ranks`, for a command: only the first process tells of a fault, or all do where that one
    is lost; and only the first one gives a `Notice`."""
    from tfkd_fast.training.ranks import RankLost, join_ranks

    try:
        with warnings.catch_warnings():
            if not prints():
                warnings.simplefilter("ignore", Notice)
            with join_ranks(timeout) as ranks:
                yield ranks
    except (UserError, Stopped) as error:
        if prints() or (isinstance(error, RankLost) and 0 in error.lost):
            raise
        sys.exit(error.exit_code if isinstance(error, Stopped) else 2)


def start(devices: int, arguments: Sequence[str]) -> NoReturn:
    """Run the command with these arguments in a process for each device, and end as they do.

    Raises:
        UserError: one of them was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # the ranks themselves say why they end
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    os.environ["OMP_NUM_THREADS"] = str(threads_per_process(devices))
    options = parse_args(["--standalone", f"--nproc-per-node={devices}", "-m", "tfkd_fast", *arguments])
    if hasattr(options, "signals_to_handle"):  # not in torch 2.11
        options.signals_to_handle = ",".join(number.name for number in SIGNALS)
    try:
        run(options)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)  # the process said why
        raise UserError(
            f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}: --resume RUN_DIR goes on from the "
            "last checkpoint, with any number of devices"
        ) from None
    sys.exit(0)
