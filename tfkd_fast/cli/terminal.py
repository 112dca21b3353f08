"""What the command prints: whole words on a terminal, and no control characters in the names of others."""

import sys
import textwrap
from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tfkd_fast.errors import printable


class Terminal(Console):
    """A console whose escape sequences come from its own styles only, never from the text that is printed."""

    def __init__(self, file: IO[str] | None = None, *, error: bool = False, width: int | None = None) -> None:
        """Print to `file`, by default to standard output, or to standard error for `error`."""
        super().__init__(file=file, stderr=error, width=width, highlight=False, markup=False, emoji=False)
        self.is_live = self.file.isatty() and not self.is_dumb_terminal
        """Whether lines that are on the screen can be changed."""

    def say(self, text: str) -> None:
        """Print a line; on a terminal it is broken between words, and elsewhere it stays whole."""
        lines = [text := printable(text)]
        if self.is_terminal:
            lines = textwrap.wrap(text, self.width, break_long_words=False, break_on_hyphens=False)
        for line in lines:
            self.print(line, soft_wrap=True)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as any console does, with every text made printable."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)


def replace_unknown_characters() -> None:
    """From now on the standard streams show a "?" for what their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
