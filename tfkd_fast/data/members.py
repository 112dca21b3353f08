"""Files in tar archives that are not compressed, each read from its place without the others."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from tfkd_fast.files import open_regular, reading

END = 1 << 16
"""Bytes after the last file that are looked at, which are zeros: a block at least, and mostly up to 10 KB."""


@dataclass(frozen=True, order=True, slots=True)
class TarMember:
    """A regular file in a tar archive."""

    archive: Path
    """The archive that holds it."""
    path: str
    """The path of the file in it."""
    offset: int
    """The place of its first byte in the archive."""
    size: int
    """The number of its bytes."""

    def __str__(self) -> str:
        return f"{self.archive}: {self.path}"

    @property
    def name(self) -> str:
        """A name that no file of another archive has, if archives of one folder are meant."""
        return f"{self.archive.name}/{self.path}"

    def open(self) -> BinaryIO:
        """Open the file for reading; all of it is in memory.

        Raises:
            OSError: the archive cannot be read.
            EOFError: it ends before the file does.
        """
        with open_regular(self.archive) as archive:
            archive.seek(self.offset)
            content = archive.read(self.size)
        if len(content) < self.size:
            raise EOFError("the archive ends before it does")
        return BytesIO(content)


AnyFile = Path | TarMember
"""A file of its own, or one in a tar archive."""


def open_file(file: AnyFile) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened, or is no regular file.
        EOFError: its archive ends before it does.
    """
    return file.open() if isinstance(file, TarMember) else open_regular(file)


def list_members(archive: Path) -> Iterator[TarMember]:
    """Yield the regular files of an archive in their order; contents are not read.

    Raises:
        UserError: it is no tar archive, is compressed, ends early, or goes on after its end.
    """
    remedy = "shards are single tar archives that are not compressed; make or copy it again"
    with (
        reading(archive, "the shard", remedy),
        open_regular(archive) as file,
        tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar,
    ):
        for member in tar:
            if member.isreg():
                yield TarMember(archive, member.name, member.offset_data, member.size)
        file.seek(tar.offset)  # tarfile takes an archive that was cut off for one that ends
        if len(end := file.read(END)) < tarfile.BLOCKSIZE:
            raise EOFError("it ends early")
        if any(end):
            raise ValueError("another archive follows, or a damaged file")
