"""The `tfkd-fast` command."""

from tfkd_fast.cli.app import main

__all__ = ["main"]
