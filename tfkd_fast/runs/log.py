"""The log of a run while it is written: the file, its listeners, and the clock."""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tfkd_fast.errors import UserError
from tfkd_fast.events import Event, LogLine, RunStarted, from_line, to_line
from tfkd_fast.files import is_checked_line, read_bytes
from tfkd_fast.runs.folder import RunFolder

PARTS = ("training", "compile", "evaluation", "steering", "saving")
"""The activities that a run's seconds are counted for: training steps, their set-up, held-out metrics, method and log,
waits for checkpoints and files of students."""


LOG_REMEDY = "make it a readable file again"


class Listener:
    """A listener to a run, such as a progress display. A subclass overrides the methods that it needs."""

    def event(self, event: Event) -> None:
        """Called when an event was written to the log."""

    def batch(self, images: int) -> None:
        """Called when students were trained on `images` more images, summed over the candidates."""

    def close(self) -> None:
        """Called when the process trains no more, however that came; the run may go on in another one."""


class LineFile:
    """A text file that grows by whole lines, each of which goes to the file as it is written."""

    def __init__(self, path: Path, *, keep: int = 0, how_to_go_on: str) -> None:
        """Open the file and cut it to its first `keep` bytes.

        Args:
            path: the file.
            keep: number of its bytes that stay.
            how_to_go_on: the end of a sentence for the case that it cannot be written.

        Raises:
            UserError: the file cannot be written.
        """
        self._path, self._how_to_go_on = path, how_to_go_on
        try:
            path.touch()
            os.truncate(path, min(keep, path.stat().st_size))
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise self._failure(error) from None

    def write(self, line: str) -> None:
        """Append a line, given without its end.

        Raises:
            UserError: the file cannot be written, for example because the disk is full.
        """
        content = f"{line}\n".encode()
        try:
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._failure(error) from None

    def size(self) -> int:
        """Number of bytes in the file so far, those that were kept included."""
        return os.fstat(self._file.fileno()).st_size

    def sync(self) -> None:
        """Flush to disk what was written.

        Raises:
            UserError: the disk failed.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failure(error) from None

    def close(self) -> None:
        """Close the file; nothing can be written afterwards."""
        self._file.close()

    def _failure(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self._path}: {error.strerror}; what was there before is untouched: make it writable, then "
            f"{self._how_to_go_on}"
        )


class RunLog:
    """Writes metrics.jsonl, calls the listeners, and counts the seconds of the run by activity."""

    def __init__(
        self,
        path: Path | None,
        listeners: Sequence[Listener],
        *,
        keep: int = 0,
        earlier_seconds: float = 0.0,
        seconds: dict[str, float] | None = None,
    ) -> None:
        """Open the log of a new run, or of one that continues from a checkpoint.

        Args:
            path: metrics.jsonl; None for a process that counts the seconds only, while another one writes.
            listeners: called with every event and every batch.
            keep: bytes of the file that were written before the checkpoint; what follows them is cut off.
            earlier_seconds: seconds of the run before the checkpoint.
            seconds: seconds of each of `PARTS` before the checkpoint.

        Raises:
            UserError: the file cannot be written.
        """
        self._file: LineFile | None = None
        self._lines = 0
        if path is not None:
            self._file = LineFile(path, keep=keep, how_to_go_on=f"go on with {RunFolder(path.parent).resume_option}")
            self._lines = path.read_bytes().count(b"\n")
        self._listeners = listeners
        self._earlier_seconds, self._started = earlier_seconds, time.perf_counter()
        self.seconds = dict.fromkeys(PARTS, 0.0) | (seconds or {})
        """Seconds of the run by activity, see `PARTS`."""

    def write(self, *events: Event) -> None:
        """Append a line for each event, then call the listeners."""
        for event in events:
            if self._file is not None:
                self._file.write(to_line(event, self.elapsed(), self._lines + 1))
                self._lines += 1
            for listener in self._listeners:
                listener.event(event)

    def batch(self, images: int) -> None:
        """Call the listeners with the number of images of a step."""
        for listener in self._listeners:
            listener.batch(images)

    @contextmanager
    def measure_seconds(self, part: str) -> Iterator[None]:
        """Count the seconds of the block as those of `part`, one of `PARTS`; also where it ends by an exception."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started

    def elapsed(self) -> float:
        """Seconds of the run so far, over all of its processes."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def sync(self) -> int:
        """Flush the file to disk, so that it outlives a power cut as a checkpoint does; returns its size in bytes."""
        if self._file is not None:
            self._file.sync()
        return self.size()

    def size(self) -> int:
        """Bytes of the log so far; a kill of the process leaves them, a power cut may not before `sync`."""
        return 0 if self._file is None else self._file.size()

    def close(self) -> None:
        """Close the file, and let the listeners close theirs; nothing can be written afterwards."""
        if self._file is not None:
            self._file.close()
        for listener in self._listeners:
            listener.close()


def whole_bytes(path: Path, limit: int) -> int:
    """Bytes of the lines of a log within its first `limit` bytes, up to one that was cut off by a kill or a power cut;
    0 without a log.

    Raises:
        UserError: as `read_log`, so that nothing undamaged is cut off behind a line that is not.
    """
    content = read_bytes(path, "the log", LOG_REMEDY) if path.exists() else b""
    return sum(len(line) for line, _ in _lines(path, content[:limit]) if line.endswith(b"\n"))


def read_log(path: Path) -> list[LogLine]:
    """The lines of metrics.jsonl; the last one may have been cut off by a kill, and is then left out.

    An empty line stands for one that was damaged, and is left out, too.

    Raises:
        UserError: another line is damaged, or not the one that the run wrote there, because lines were lost, repeated
            or moved; the file, the line and the remedy are named.
    """
    return [read for _, read in _lines(path, read_bytes(path, "the log", LOG_REMEDY)) if read]


def _lines(path: Path, content: bytes) -> Iterator[tuple[bytes, LogLine | None]]:
    """Each line of a log with what it says; see `read_log`."""
    checked = False  # logs of earlier versions have no checksums, nor has what one wrote before a resume
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        try:
            read = _read_line(line, number)
            if read and checked and not is_checked_line(line):
                raise ValueError("it has no checksum")
        except _OutOfPlace as error:
            raise UserError(f"line {number} of {path} {error}") from None
        except ValueError as error:
            if not line.endswith(b"\n"):
                return
            raise UserError(f"line {number} of {path} is damaged ({error}): empty it, but keep its place") from None
        checked = checked or is_checked_line(line)
        yield line, read


class _OutOfPlace(ValueError):
    """A line that is undamaged, but not the one that the run wrote there."""


def _read_line(line: bytes, number: int) -> LogLine | None:
    """What the line of this number says; None for an empty one.

    Raises:
        ValueError: it is damaged, or not in its place (`_OutOfPlace`).
    """
    if not line.strip():
        return None
    read = from_line(line)
    if number > 1 and isinstance(read.event, RunStarted):
        raise _OutOfPlace("begins a run anew: delete it and all lines after it")
    if read.number not in (None, number):
        raise _OutOfPlace(
            f"is line {read.number} of the run: put every line back in its place, and an empty one where one is lost"
        )
    return read
