"""The boundary of files: every fault is one sentence, writing is atomic, checksums notice every flipped bit."""

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfkd_fast import files, from_pretrained
from tfkd_fast.errors import UserError, printable
from tfkd_fast.files import (
    expand_home,
    from_checked_json,
    from_checked_line,
    from_checked_text,
    parse_json,
    parse_toml,
    read_text,
    reading,
    to_checked_json,
    to_checked_line,
    to_checked_text,
    write_bytes,
)
from tfkd_fast.runs.recipe import make_recipe


def read_toml(path: Path) -> dict[str, Any]:
    return parse_toml(read_text(path, "recipe", "mend it"), path, "recipe", "mend it")


def read_json(path: Path) -> dict[str, Any]:
    content = files.read_bytes(path, "recipe", "mend it")
    with reading(path, "recipe", "mend it"):
        return parse_json(content)


@pytest.mark.parametrize(
    ("content", "read", "fault"),
    [
        (b"\xff\xfe", read_toml, "is no UTF-8 text"),
        (b"a = = 1", read_toml, "is not valid TOML: Invalid value (at line 1, column 5)"),
        (b"a = " + b"[" * 100_000, read_toml, "is nested too deeply"),
        (b"a = " + b"1" * 5000, read_toml, "holds a number of thousands of digits"),
        (b"{", read_json, "is damaged or of another kind (Expecting property name"),
        (b"[" * 100_000, read_json, "is damaged or of another kind (it is nested too deeply)"),
        (b"1" * 5000, read_json, "holds a number of thousands of digits"),
        (b"[1]", read_json, "is damaged or of another kind (it is a list)"),
        (b"\xff", read_json, "is no UTF-8 text"),
    ],
)
def test_content_that_is_none_is_one_sentence(
    tmp_path: Path, content: bytes, read: Callable[[Path], object], fault: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"recipe {path} {fault}")) as caught:
        read(path)
    assert str(caught.value).endswith(": mend it")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # which a reader would wait for
    places = {
        tmp_path / "nothing": "does not exist",
        tmp_path: "is a folder",
        tmp_path / "pipe": "is no regular file but a pipe or a device",
        Path("/dev/zero"): "is no regular file but a pipe or a device",
        tmp_path / ("a" * 300): "cannot be read (File name too long)",
        tmp_path / "nul\0": "is damaged or of another kind (embedded null byte)",
    }
    for path, fault in places.items():
        with pytest.raises(UserError, match=re.escape(f"{printable(str(path))} {fault}: mend it")):
            read_text(path, "recipe", "mend it")


def test_text_is_utf8_whatever_system_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("\N{ZERO WIDTH NO-BREAK SPACE}é = 1\r\n".encode())
    assert read_text(path, "recipe", "") == "é = 1\n"


@pytest.mark.parametrize("error", [MemoryError(), OverflowError("x"), RecursionError(), KeyError("a"), RuntimeError()])
def test_whatever_a_parser_raises_becomes_a_sentence(error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r"^the image x.png (is|asks) .*: replace it$"),
        reading("x.png", "the image", "replace it"),
    ):
        raise error


def test_a_long_reason_is_cut_and_a_sentence_stays_as_it_is() -> None:
    with pytest.raises(UserError) as caught, reading("x", "file", "mend it"):
        raise ValueError("two\nlines " * 1000)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^as it is$"), reading("x", "file", "mend it"):
        raise UserError("as it is")


def test_a_tilde_is_a_home_folder_or_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~/x") == tmp_path / "x"
    assert expand_home(Path("x/~")) == Path("x/~")
    root = partial(make_recipe({"method": "ce"}).with_data_root, "~nosuchuser/x")
    for read in (partial(expand_home, "~nosuchuser/x"), partial(from_pretrained, "~nosuchuser/x"), root):
        with pytest.raises(UserError, match="there is no home folder as in ~nosuchuser/x: write the path out"):
            read()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    (tmp_path / "file.part").mkdir()  # the neighbour cannot be opened for writing
    with pytest.raises(UserError, match=r"cannot write .*file: .*untouched"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="the folder whose entries cannot be flushed is Linux's")
def test_a_file_system_that_flushes_no_folders_is_written_all_the_same() -> None:
    folder = os.open("/proc", os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(folder)
    os.close(folder)
    files.sync_folder(Path("/proc"))


def test_what_cannot_be_written_is_told_before(tmp_path: Path) -> None:
    for path, fault in (
        (tmp_path / "no" / "file", f"there is no folder {tmp_path / 'no'}, make it first"),
        (tmp_path, "it is a folder, name a file in it"),
        (Path("/proc/self/file"), "nothing can be written in /proc/self, name another folder"),
    ):
        with pytest.raises(UserError, match=f"cannot write {path}: {fault}"):
            files.refuse_unwritable(path)
    files.refuse_unwritable(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_the_cache_is_where_it_is_said_to_be_by_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for named, place in (("/else", Path("/else")), ("here", tmp_path / ".cache"), ("", tmp_path / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert files.user_cache() == place / "tfkd_fast"


VALUES = {"event": "epoch", "nll": 0.125, "names": ["a", "ü"], "none": None, "holdout": {"top1": 50.0}}
TEXT = 'method = "ce"\n[data]\nroot = "ü"\n'
CHECKED: list[tuple[bytes, Callable[[bytes], object]]] = [
    (to_checked_line(VALUES).encode(), from_checked_line),
    (to_checked_json(VALUES).encode(), from_checked_json),
    (to_checked_text(TEXT).encode(), lambda content: from_checked_text(content.decode())),
]
FORMATS = pytest.mark.parametrize(("content", "read"), CHECKED, ids=["line", "json", "text"])


def test_what_was_checked_is_read_back() -> None:
    assert [read(content) for content, read in CHECKED] == [VALUES, VALUES, TEXT]
    assert json.loads(CHECKED[0][0]).items() > VALUES.items()  # any other program can read it


def test_what_has_no_checksum_is_read() -> None:
    """Of an earlier version, or written again by another program."""
    assert from_checked_line(json.dumps(VALUES).encode()) == VALUES
    assert from_checked_json(json.dumps(VALUES).encode()) == VALUES
    assert from_checked_text(TEXT) == TEXT
    again = json.dumps(json.loads(CHECKED[0][0]), separators=(",", ":"))
    assert from_checked_line(again.encode()) == VALUES


@FORMATS
def test_no_flipped_bit_changes_what_is_read(content: bytes, read: Callable[[bytes], object]) -> None:
    """All bits: a flipped one is refused, or it is one of the checksum's own name and nothing else differs."""
    right = read(content)
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            try:
                found = read(bytes(flipped))
            except ValueError:
                continue
            if isinstance(found, dict):
                found = {key: value for key, value in found.items() if key in VALUES}
            elif isinstance(found, str) and isinstance(right, str):
                found = found[-len(right) :]
            assert found == right, (place, bit)


@given(st.binary(max_size=60))
def test_any_bytes_are_values_or_a_value_error(content: bytes) -> None:
    for _, read in CHECKED:
        with suppress(ValueError):
            read(content)
