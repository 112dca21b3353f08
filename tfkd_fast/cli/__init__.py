"""The `tfkd-fast` command."""

import sys

from tfkd_fast.runs.stop import Stopped, stopped_by_signals

__all__ = ["main"]


def main() -> None:
    """Run the command; a signal ends it with a sentence that tells how to go on, and the exit code of that signal."""
    with stopped_by_signals() as stop:
        try:
            from tfkd_fast.cli.app import app, faults_in_sentences  # takes seconds, in which signals may come, too

            with faults_in_sentences():
                app(obj=stop)
        except Stopped as stopped:
            from tfkd_fast.cli.terminal import Terminal

            then = stop.how_to_go_on if stop.resumable else "the same command again starts anew"
            Terminal(error=True).say(f"stopped: {then}")
            sys.exit(stopped.exit_code)
