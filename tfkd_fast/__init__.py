"""Teacher-free knowledge distillation, fast: see README.md for the command, `tfkd_fast.ops` for the operators."""

from importlib.metadata import version

__version__ = version("tfkd-fast")
