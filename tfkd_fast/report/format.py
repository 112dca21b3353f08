"""Numbers of a run as text. A value that is not known, None or NaN, is a dash."""

import math
from typing import Any

UNKNOWN = "–"
"""The text of a value that is not known."""


def as_number(value: Any) -> float:
    """A value as a float; NaN for anything that is no number."""
    return float(value) if isinstance(value, int | float) else math.nan


def decimals(value: Any, digits: int = 2) -> str:
    """A number with so many digits after the point."""
    number = as_number(value)
    return f"{number:.{digits}f}" if math.isfinite(number) else UNKNOWN


def standard_error(top1: float, images: int) -> float:
    """The binomial standard error, in percent points, of an accuracy in percent on so many images."""
    return math.sqrt(top1 * (100.0 - top1) / images) if math.isfinite(top1) else math.nan


def rank_text(rank: float) -> str:
    """A rank or a score of ranks without needless digits: ranks of ties are halves, weighted sums may be anything."""
    return f"{rank:g}" if math.isfinite(rank) else UNKNOWN


def count_text(value: Any) -> str:
    """A number without digits after the point, its thousands set apart."""
    number = as_number(value)
    return f"{number:,.0f}" if math.isfinite(number) else UNKNOWN


def count_words(count: int, one: str, several: str = "") -> str:
    """How many of something, as "1 epoch" or "1,000 epochs"; `several` where that is not `one` with an s."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def duration(seconds: float) -> tuple[str, str]:
    """A duration as a value and its unit: seconds, minutes or hours."""
    if not math.isfinite(seconds):
        return UNKNOWN, ""
    if seconds < 90:
        return f"{seconds:.1f}", "s"
    return (f"{seconds / 60:.1f}", "min") if seconds < 5400 else (f"{seconds / 3600:.1f}", "h")


def interval_text(first: int, last: int) -> str:
    """Whole numbers from the first to the last, as "3" or "3–5"."""
    return str(first) if first == last else f"{first}–{last}"


def value_text(name: str, value: Any) -> str:
    """A value of the summary, with its unit where the name tells it."""
    if value is None:
        return UNKNOWN
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(key, part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(value_text(name, part) for part in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not math.isfinite(value):
        return UNKNOWN
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    unit = " %" if name.endswith(("top1", "top5")) else " s" if name.endswith("seconds") else ""
    return text + unit
