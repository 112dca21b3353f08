"""The boundary where files are read, refused and written.

Whatever is wrong with a file is one `UserError` that names the file, the fault and the remedy: it is missing, a folder
or a pipe, must not be read, is no text, is damaged or of another kind, or asks for more memory than there is. What this
package writes and reads back has a checksum, so that no damage passes unnoticed; files of earlier versions have none
and are read without.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import sys
import tomllib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from tfkd_fast.errors import UserError
from tfkd_fast.strict_json import to_json

Record = TypeVar("Record", bound=BaseModel)

PART = ".part"
"""What the name of a file ends in while it is written; the file takes its own name when it is whole."""
LONGEST_REASON = 200
"""Characters of another library's message that a sentence quotes."""


# Reading.


class NoRegularFile(OSError):
    """A pipe, a socket or a device, which reading might wait for without end."""


@contextmanager
def reading(path: Path | str, kind: str, remedy: str) -> Iterator[None]:
    """Context manager for a block that reads a file and parses its content, and does nothing else.

    Whatever a parser raises for foreign bytes says that they are not what they should be.

    Args:
        path: the file, or the name of what is read.
        kind: what it is, for the beginning of the sentence, such as "recipe"; may be empty.
        remedy: the end of the sentence.

    Raises:
        UserError: "KIND PATH FAULT: REMEDY"; also where the block raises one itself, which is left as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{kind} {path} {fault_of(error)}: {remedy}".lstrip()) from None


def fault_of(error: Exception) -> str:
    """What an error says of the file that was read, as the predicate of a sentence."""
    match error:
        case FileNotFoundError():
            return "does not exist"
        case IsADirectoryError():
            return "is a folder"
        case NoRegularFile():
            return "is no regular file but a pipe or a device"
        case OSError():
            return f"cannot be read ({_one_line(error.strerror or error)})"
        case UnicodeError():
            return "is no UTF-8 text"
        case tomllib.TOMLDecodeError():
            return f"is not valid TOML: {_one_line(error)}"
        case ValidationError():
            fault = error.errors(include_url=False)[0]
            what = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            return f"is damaged or of another kind ({_one_line(what)})"
        case RecursionError():
            return "is nested too deeply"
        case MemoryError() | OverflowError():
            return "asks for more memory than there is"
        case ValueError() if "set_int_max_str_digits" in str(error):
            return "holds a number of thousands of digits"
    return f"is damaged or of another kind ({_one_line(error) or type(error).__name__})"


def _one_line(reason: object) -> str:
    text = " ".join(str(reason).split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened, or is no regular file (`NoRegularFile`, `IsADirectoryError`).
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")  # noqa: PTH123, a descriptor has no path
    os.close(descriptor)
    raise IsADirectoryError if stat.S_ISDIR(mode) else NoRegularFile


def read_bytes(path: Path, kind: str, remedy: str) -> bytes:
    """Read a file; see `reading` for the arguments and the error."""
    with reading(path, kind, remedy), open_regular(path) as file:
        return file.read()


def read_text(path: Path, kind: str, remedy: str) -> str:
    """Read a file of UTF-8 text, with the ends of lines of any system; see `reading`."""
    with reading(path, kind, remedy), open_regular(path) as file:
        return file.read().decode("utf-8-sig").replace("\r\n", "\n")


def parse_toml(text: str, name: Path | str, kind: str, remedy: str) -> dict[str, Any]:
    """Parse a TOML text; see `reading`, where `name` is the path."""
    with reading(name, kind, remedy):
        return tomllib.loads(text)


def parse_json(content: str | bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: it is none; like what it raises for other faults, it is for the block of `reading`.
    """
    try:
        values = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"it is a {type(values).__name__}")
    return values


def is_there(path: Path) -> bool:
    """Whether there is a file or a folder of this name; a name that none can have is not there."""
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def expand_home(path: Path | str) -> Path:
    """The path with the home folder in the place of a ~ at its beginning.

    Raises:
        UserError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"there is no home folder as in {path}: write the path out") from None


# Writing.


def user_cache() -> Path:
    """The folder of this package in the user's cache; it may not exist yet.

    It is in XDG_CACHE_HOME, unless that is relative, which the XDG Base Directory Specification says to ignore.

    Raises:
        RuntimeError: the user has no home folder.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "tfkd_fast"


def refuse_unwritable(path: Path) -> None:
    """Raise UserError if it can be told before that a file cannot be written; what is there stays as it is."""
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {folder}, make it first")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder, name a file in it")
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path}: nothing can be written in {folder}, name another folder")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a neighbour file, flush it to disk, then rename: `path` is the old file or the new one, never a part.

    Of several processes that write the same file, one calls `write` after the other has written.
    """
    scratch = path.with_name(path.name + PART)
    try:
        with _open_alone(scratch) as file:
            try:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                if sys.platform == "win32":  # where an open file cannot be renamed, and nothing is locked
                    file.close()
                scratch.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    scratch.unlink()
                raise
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; what was there before is untouched") from None


@contextmanager
def _open_alone(scratch: Path) -> Iterator[BinaryIO]:
    """Open a file that no other process writes, as an empty one: what a killed process left there is gone."""
    while True:
        with scratch.open("ab") as file:
            lock_file(file.fileno(), wait=True)
            if _has_name(file, scratch):
                file.truncate(0)
                yield file
                return
        # another process has written it meanwhile, and given it its name


def _has_name(file: BinaryIO, path: Path) -> bool:
    """Whether an open file has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def lock_file(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file for as long as it is open, shared with others that do so or alone; returns whether that worked.

    Without `wait` it does not where another process holds a lock. Systems and file systems that have no locks behave as
    if no other process held one.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass  # this file system has none
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, atomically."""
    write_atomically(path, lambda file: file.write(content))


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to disk, too: or else a power cut could bring an old file back after newer ones
    were deleted."""
    if hasattr(os, "O_DIRECTORY"):  # not on Windows
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that do this for files alone
                raise
        finally:
            os.close(descriptor)


# Checksums of text.

_CHECKED_LINE = re.compile(rb'(.+), "crc32": "([0-9a-f]{8})"\}\s*')
_CHECKED_TEXT = re.compile(r"# sha256 ([0-9a-f]{64})\n(.*)", re.DOTALL)


class WrongChecksum(ValueError):
    """The content is not that of which the checksum was taken."""

    def __init__(self) -> None:
        super().__init__("its checksum is wrong")


def to_checked_line(values: dict[str, Any]) -> str:
    """A line of a file of JSON lines, without its end: the values, at least one, and the CRC-32 of their text."""
    text = to_json(values)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}'


def is_checked_line(line: bytes) -> bool:
    """Whether a line has a checksum, be it right or wrong."""
    return _CHECKED_LINE.fullmatch(line) is not None


def from_checked_line(line: bytes) -> dict[str, Any]:
    """The values of a line, with or without a checksum.

    Raises:
        WrongChecksum: the checksum is wrong.
        ValueError: the line is no JSON object.
    """
    found = _CHECKED_LINE.fullmatch(line)
    if found is None:
        values = parse_json(line)
        values.pop("crc32", None)  # of a line that another program wrote again
        return values
    text = found[1] + b"}"
    if zlib.crc32(text) != int(found[2], 16):
        raise WrongChecksum
    return parse_json(text)


def to_checked_json(values: dict[str, Any]) -> str:
    """Indented JSON of the values, which has the SHA-256 of their text as its last entry."""
    return to_json(values | {"sha256": _sha256(to_json(values))}, indent=2) + "\n"


def read_checked_json(path: Path, kind: str, remedy: str) -> dict[str, Any]:
    """Read a file of `to_checked_json`, or of JSON without a checksum; see `reading` for the arguments and the
    error."""
    content = read_bytes(path, kind, remedy)
    with reading(path, kind, remedy):
        return from_checked_json(content)


def read_record(path: Path, kind: str, remedy: str, model: type[Record]) -> Record:
    """Read a file of `to_checked_json` as a pydantic model; see `reading` for the arguments and the error."""
    values = read_checked_json(path, kind, remedy)
    with reading(path, kind, remedy):
        return model.model_validate(values)


def from_checked_json(content: bytes) -> dict[str, Any]:
    """The values of `to_checked_json`, or of JSON without a checksum.

    Raises:
        WrongChecksum: the checksum is wrong.
        ValueError: the content is no JSON object.
    """
    values = parse_json(content)
    if "sha256" in values and values.pop("sha256") != _sha256(to_json(values)):
        raise WrongChecksum
    return values


def to_checked_text(text: str) -> str:
    """A text after its SHA-256 in a comment, which stands first so that no cut takes it away and leaves the text."""
    return f"# sha256 {_sha256(text)}\n{text}"


def from_checked_text(text: str) -> str:
    """The text that `to_checked_text` was given; a text without a checksum as it is.

    Raises:
        WrongChecksum: the checksum is wrong.
    """
    found = _CHECKED_TEXT.fullmatch(text)
    if found is None:
        return text
    if found[1] != _sha256(found[2]):
        raise WrongChecksum
    return found[2]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
