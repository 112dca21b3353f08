"""What reaches a terminal: no control characters of others, whole words, and a "?" for what an encoding lacks."""

import io
import os
import sys
import unicodedata
from pathlib import Path

import pytest
from rich.table import Table

from tests.cli.screen import Screen
from tests.support.command import refusal
from tfkd_fast.cli.terminal import Terminal, replace_unknown_characters
from tfkd_fast.errors import UserError, printable

EVIL = "\x1b]0;title\x07\x1b[31mred\x1b[2J\x9b1A\r\n\t\x7f\x00\u202egnp.exe\u2028"


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def test_control_characters_become_escapes_and_other_text_stays() -> None:
    shown = printable(EVIL)
    assert is_harmless(shown)
    assert shown.startswith("\\x1b]0;title\\x07\\x1b[31mred")
    assert "\\u202egnp.exe\\u2028" in shown
    assert printable("\udcff") == "\\udcff"  # a byte of a file name that is no text
    for text in ("a b · é ± 名前 👩\u200d🚀", "", "\u00a0"):
        assert printable(text) == text


@pytest.mark.parametrize("make", [io.StringIO, Screen])
def test_no_way_of_printing_lets_them_through(make: type[io.StringIO]) -> None:
    """A line, a text of rich and the cell of a table: what is left are line ends and the console's own styles."""
    file = make()
    terminal = Terminal(file, width=200)
    terminal.say(EVIL)
    terminal.print(EVIL)
    table = Table(EVIL, title=EVIL)
    table.add_row(EVIL)
    terminal.print(table)
    rest = file.getvalue()
    for own in ("\x1b[1m", "\x1b[3m", "\x1b[0m", "\n"):
        rest = rest.replace(own, "")
    assert is_harmless(rest)
    assert rest.count("title") == 5


def test_a_refusal_is_one_harmless_line() -> None:
    assert refusal("report", "no\x1b[2J\nrun") == r"error: no\x1b[2J\nrun is no run folder: it has no recipe.toml"


def test_a_terminal_is_wider_than_no_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    Terminal(file).say("no command trian")
    assert file.getvalue() == "no command trian\n"


@pytest.mark.parametrize("width", [80, 120])
def test_lines_are_broken_between_words_on_a_terminal_only(width: int) -> None:
    words = " ".join(f"word{number:03}" for number in range(60)) + " /a/path/that/is/longer" + "/than/any/line" * 12
    screen, file = Screen(), io.StringIO()
    Terminal(screen, width=width).say(words)
    Terminal(file, width=width).say(words)
    assert file.getvalue() == f"{words}\n"
    *lines, path = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join((*lines, path)) == words


@pytest.mark.parametrize("encoding", ["ascii", "cp932"])
def test_what_an_encoding_lacks_is_a_question_mark(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    replace_unknown_characters()
    Terminal().say("a · é ± b")
    Terminal(error=True).say("a · é ± b")
    expected = "a · é ± b".encode(encoding, "replace")
    assert b"?" in expected
    for stream in streams:
        stream.flush()
        assert stream.buffer.getvalue().strip() == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_what_cannot_be_printed_is_refused_or_dropped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        Path("/dev/full").open("w") as full,
        pytest.raises(UserError, match=r"^cannot print: No space left on device$"),
    ):
        Terminal(full).say("a line")
    with Path("/dev/full").open("w") as full:
        terminal = Terminal(full, optional=True)
        for _ in range(3):
            terminal.say("a line")
    assert capsys.readouterr().err == "cannot print: No space left on device; what follows is not shown\n"


def test_where_nobody_reads_a_run_goes_on_and_a_listing_ends() -> None:
    for optional in (True, False):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            terminal = Terminal(pipe, optional=optional)
            if optional:
                for _ in range(3):
                    terminal.say("a line")
            else:
                with pytest.raises(SystemExit) as end:
                    terminal.say("a line")
                assert end.value.code == 1
