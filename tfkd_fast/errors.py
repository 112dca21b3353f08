"""The one exception that reaches a person, the one warning, and how their sentences name what was meant."""

import difflib
import reprlib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or a bad environment, said in one sentence that names the thing and the remedy.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


class Notice(UserWarning):
    """What a person should know and what stops nothing, said in one sentence through `warnings`.

    The command line prints the sentence on standard error.
    """


LONGEST = 120
"""Characters of a value that a sentence shows."""


def shorten(value: object) -> str:
    """What a sentence shows of a value that somebody gave: its `repr` on one line, with an ellipsis in long ones."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = LONGEST
    return short.repr(value)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest valid one, or all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}"
