"""The base of every table of a recipe."""

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Immutable, typed, bounded values; an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest valid one, or all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}"
