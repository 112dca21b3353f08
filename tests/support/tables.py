"""Tables of a recipe that have several forms, from plain values."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter


def make_table(forms: Any, values: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """The table of a union such as `ControllerSettings` with these values."""
    return TypeAdapter(forms).validate_python({**(values or {}), **more})
