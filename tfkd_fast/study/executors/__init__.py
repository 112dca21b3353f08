"""Where the runs of a study or a search train: here, or as tasks of a cluster."""

from tfkd_fast.study.executors.local import LocalExecutor
from tfkd_fast.study.executors.protocol import POLL, Executor, Processes, RunOrder, RunProcess, end_reason, wait_for_all

__all__ = [
    "POLL",
    "Executor",
    "LocalExecutor",
    "Processes",
    "RunOrder",
    "RunProcess",
    "end_reason",
    "wait_for_all",
]
