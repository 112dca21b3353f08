"""Tables of a recipe: of several forms, from plain values, and some that several tests train by."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

LEARNED: dict[str, dict[str, Any]] = {
    "target": {"family": "rank-binned", "sources": []},
    "controller": {"name": "ppo"},
}
"""Tables under which `tfkd` and `tfkd-mrs` learn a free-form target in the run, from nothing."""


def make_table(forms: Any, values: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """The table of a union such as `ControllerSettings` with these values."""
    return TypeAdapter(forms).validate_python({**(values or {}), **more})
