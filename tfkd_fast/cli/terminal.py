"""What the command prints: whole words on a terminal, and no control characters in the names of others."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tfkd_fast.errors import UserError, printable


class Terminal(Console):
    """A console whose escape sequences come from its own styles only, never from the text that is printed."""

    def __init__(
        self,
        file: IO[str] | None = None,
        *,
        error: bool = False,
        width: int | None = None,
        optional: bool = False,
    ) -> None:
        """Print to `file`, by default to standard output, or to standard error for `error`.

        With `optional`, for what tells of work that goes on without it, all is dropped from the first time on that
        something cannot be printed; else that raises UserError, or ends the program where nobody reads any more.
        """
        super().__init__(file=file, stderr=error, width=width, highlight=False, markup=False, emoji=False)
        if self.width < 1:  # COLUMNS is 0, for which the system's answer goes
            self.width = shutil.get_terminal_size().columns
        self.is_live = self.file.isatty() and not self.is_dumb_terminal
        """Whether lines that are on the screen can be changed."""

        self._optional = optional or error

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as any console does.

        Raises:
            UserError: the file cannot be written, for example because the disk is full.
        """
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._drop_the_rest()
            sentence = f"cannot print: {error.strerror}"
            if not self._optional:
                raise UserError(sentence) from None
            sys.stderr.write(f"{sentence}; what follows is not shown\n")

    def on_broken_pipe(self) -> None:
        """Go on without printing, or end the program."""
        self._drop_the_rest()
        if not self._optional:
            raise SystemExit(1)

    def _drop_the_rest(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)

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
