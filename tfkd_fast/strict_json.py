"""JSON as its standard has it: without NaN and infinity, which are written as null."""

import json
import math
from typing import Any


def to_json(value: Any, indent: int | None = None, *, escapes: bool = True) -> str:
    """The JSON text of nested plain values, on one line or indented; NaN and infinity become null.

    `escapes`: whether characters beyond ASCII are written as escapes.
    """
    return json.dumps(replace_nonfinite(value), indent=indent, ensure_ascii=escapes, allow_nan=False)


def replace_nonfinite(value: Any) -> Any:
    """The same nested plain values with None in the place of NaN and infinity, and lists in that of tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(item) for item in value]
    return value
