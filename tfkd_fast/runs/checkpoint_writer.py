"""Checkpoints that are written on a thread, while training goes on."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tfkd_fast.finiteness import named_tensors
from tfkd_fast.runs.folder import RunFolder


class CheckpointWriter:
    """Writes the checkpoints of a run one after the other, on a thread of its own.

    `contextlib.closing(writer)` waits for the last one also where the run ends by an exception.
    """

    def __init__(self, folder: RunFolder, sync_log: Callable[[], object]) -> None:
        """Start no thread yet.

        Args:
            folder: the folder of the run.
            sync_log: called on the thread before a checkpoint is written, to flush the log that it counts on.
        """
        self._folder, self._sync_log = folder, sync_log
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._write: Future[None] | None = None

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Wait until the checkpoint before is written, copy the state after `epoch` epochs, and begin to write it.

        Raises:
            UserError: the checkpoint before, or the log, could not be written.
        """
        self.wait()
        self._write = self._thread.submit(self._write_files, epoch, snapshot(state))

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            UserError: it, or the log, could not be written.
        """
        write, self._write = self._write, None
        if write is not None:
            write.result()

    def close(self) -> None:
        """Wait until the last checkpoint is written, and end the thread; see `wait`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write_files(self, epoch: int, state: dict[str, Any]) -> None:
        self._sync_log()
        self._folder.save_checkpoint(epoch, state)


def snapshot(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested values that nothing else changes, with all tensors on the CPU; a checkpoint of it has the bits
    that one of the values themselves has."""
    copies = {id(tensor): tensor.cpu() for _, tensor in named_tensors(state) if not tensor.is_cpu}
    return copy.deepcopy(state, copies)
