"""Numbers as text: what is not known is a dash, and units follow the names of a summary."""

import math
from typing import Any

import pytest

from tfkd_fast.report.format import (
    as_number,
    count_text,
    count_words,
    decimals,
    duration,
    interval_text,
    rank_text,
    value_text,
)


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf, "text", [1.0]])
def test_what_is_no_number_is_a_dash(unknown: Any) -> None:
    assert decimals(unknown) == count_text(unknown) == "–"
    assert not math.isfinite(as_number(unknown))


def test_numbers_have_the_digits_that_are_asked_for() -> None:
    assert (decimals(71.234), decimals(1.0512, 3), decimals(7)) == ("71.23", "1.051", "7.00")
    assert (count_text(12_345.6), rank_text(2.0), rank_text(1.5), rank_text(math.nan)) == ("12,346", "2", "1.5", "–")
    assert (interval_text(3, 3), interval_text(3, 5)) == ("3", "3–5")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, ("0.0", "s")),
        (89.94, ("89.9", "s")),
        (90.0, ("1.5", "min")),
        (5399.0, ("90.0", "min")),
        (5400.0, ("1.5", "h")),
        (math.nan, ("–", "")),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float, text: tuple[str, str]) -> None:
    assert duration(seconds) == text


def test_values_of_a_summary_have_the_unit_that_their_name_tells() -> None:
    assert value_text("test_top1", 61.23456789) == "61.2346 %"
    assert value_text("training_seconds", 1900.0) == "1900 s"
    assert value_text("method", "ce") == "ce"
    assert value_text("best_epoch", None) == "–"
    assert (value_text("steered", True), value_text("teachers", []), value_text("nll", math.inf)) == (
        "yes",
        "none",
        "–",
    )
    assert value_text("group_top1", [50.0, None]) == "50 %, –"
    assert (
        value_text("professors", [{"teacher": "deep", "teacher_top1": 98.25}]) == "teacher deep, teacher_top1 98.25 %"
    )


def test_one_of_something_is_no_plural() -> None:
    assert (count_words(1, "epoch"), count_words(1_000, "epoch")) == ("1 epoch", "1,000 epochs")
    assert (count_words(1, "class", "classes"), count_words(2, "class", "classes")) == ("1 class", "2 classes")
