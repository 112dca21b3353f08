"""`python -m tfkd_fast` is the `tfkd-fast` command."""

from tfkd_fast.cli import main

main()
