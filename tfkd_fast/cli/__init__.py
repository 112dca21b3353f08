"""The `tfkd-fast` command."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tfkd_fast.machine import keep_to_the_time_of_a_container
from tfkd_fast.runs.stop import Stopped, stopped_by_signals

__all__ = ["imports", "main"]


@contextmanager
def imports() -> Iterator[None]:
    """Where something is imported, nobody looks for garbage meanwhile, nor later in what is there by then: nearly all
    of it stays, and looking through it takes a seventh of the time."""
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if len(sys.modules) > before:
            gc.freeze()


def main() -> None:
    """Run the command; a signal ends it with a sentence that tells how to go on, and the exit code of that signal."""
    keep_to_the_time_of_a_container()
    with stopped_by_signals() as stop:
        try:
            with imports():  # take seconds, in which signals may come, too
                from tfkd_fast.cli.app import app, faults_in_sentences

            with faults_in_sentences():
                app(obj=stop)
        except Stopped as stopped:
            from tfkd_fast.cli.terminal import Terminal

            then = stop.how_to_go_on if stop.resumable else "give the same command again"
            Terminal(error=True).say(f"stopped: {then}")
            sys.exit(stopped.exit_code)
