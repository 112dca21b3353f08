"""The one exception that reaches a person, the one warning, and how their sentences name what was meant."""

import difflib
import operator
import reprlib
import unicodedata
from collections.abc import Iterable

LONGEST_SENTENCE = 1000
"""Characters of a sentence; a path may have some hundred."""


class UserError(Exception):
    """Bad input or a bad environment, said in one sentence that names the thing and the remedy.

    The command line prints the sentence and exits with code 2, without a traceback. Whatever a sentence quotes, it is
    one line of text that can be printed and read: see `printable`; what is too long is cut.
    """

    def __init__(self, sentence: str) -> None:
        line = printable(sentence)
        super().__init__(line if len(line) <= LONGEST_SENTENCE else f"{line[:LONGEST_SENTENCE]}...")


class Notice(UserWarning):
    """What a person should know and what stops nothing, said in one sentence through `warnings`.

    The command line prints the sentence on standard error.
    """


DIRECTIONS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""Characters that reorder the text around them, so that a line reads otherwise than it is."""
LONGEST = 120
"""Characters of a value that a sentence shows."""


def shorten(value: object) -> str:
    """What a sentence shows of a value that somebody gave: its `repr` on one line, with an ellipsis in long ones."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = LONGEST
    return short.repr(value)


def printable(text: str) -> str:
    """The text in one line: control characters, line breaks, marks of direction and what is no character (as the bytes
    of a file's name that are no UTF-8) as escapes such as \\x1b."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(character) if _is_control(character) else character for character in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in DIRECTIONS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest valid one, or all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}"


def refuse_unknown(kind: str, name: object, known: Iterable[str], table: str, where: object) -> None:
    """Raise UserError if what a stored run names is not known to this process, as where a program had added it.

    Args:
        kind: what is named, such as "network".
        name: its name; anything but a string is left to others.
        known: the names that this process knows.
        table: where they are known, as Python has it.
        where: the file or folder that names it.
    """
    names = list(known)
    if isinstance(name, str) and name not in names:
        raise UserError(
            f"{where} has the {kind} {shorten(name)}, which is none of {', '.join(names)}: use it in a program that "
            f"adds it to {table} first"
        )


def refuse_other_kind(value: object, kind: type | tuple[type, ...], words: str) -> None:
    """Raise UserError if an argument is not of the kind that a function takes; `words` say what it is, as in "a recipe
    is a name or a dictionary"."""
    if not isinstance(value, kind):
        raise UserError(f"{words}: got {shorten(value)}")


def check_whole_number(name: str, value: object, least: int, most: int = 2**63 - 1) -> int:
    """The value of an argument that is a whole number, be it of Python, numpy or torch.

    Raises:
        UserError: it is none, or not between `least` and `most`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise UserError(f"{name} must be a whole number from {least} to {most}: got {shorten(value)}")
    return number
