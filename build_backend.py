"""What pip calls to build this package: setuptools, except that a source distribution needs no torch."""

from typing import Any

from setuptools.build_meta import *  # noqa: F403


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return nothing: setup.py asks for torch to compile the operators, and a source distribution compiles none."""
    return []
