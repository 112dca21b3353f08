"""What a plan costs in words, and the time that is left of it."""

import pytest

from tfkd_fast.cli.pace import LATEST, Pace, duration_words, plan_words


def test_a_plan_names_its_cost_where_it_is_more_than_its_epochs() -> None:
    assert plan_words(1, 1) == "1 epoch"
    assert plan_words(240, 240) == "240 epochs"
    assert plan_words(240, 0) == "240 epochs"  # of a log that does not say
    assert plan_words(240, 9600) == "240 epochs, up to 9,600 student-epochs"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (38 * 60, "38 min"), (99.4 * 60, "99 min"), (7200, "2 h 0 min"),
        (7799, "2 h 10 min"), (47 * 3600 + 3599, "48 h 0 min"), (76 * 3600, "3 d 4 h"),
    ],
)  # fmt: skip
def test_a_duration_has_about_two_digits(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


def test_the_latest_units_say_what_is_left() -> None:
    pace = Pace(100, 10, now=50.0)
    assert pace.seconds_left() is None
    pace.advance(12, now=56.0)
    assert pace.seconds_left() == pytest.approx(3.0 * 88)
    assert pace.seconds_left(13.0) == pytest.approx(3.0 * 87)
    pace.pause(100.0)
    pace.advance(12, now=157.0)  # nothing new
    pace.advance(14, now=160.0)
    assert pace.seconds_left() == pytest.approx(10.0 / 4 * 86)
    for number in range(LATEST):
        pace.advance(15 + number, now=161.0 + number)
    assert pace.seconds_left() == pytest.approx(100 - 14 - LATEST)
    pace.advance(101, now=500.0)
    assert pace.seconds_left() == 0.0


def test_units_that_are_finished_at_about_the_same_time_are_measured_together() -> None:
    pace = Pace(20, 2, now=100.0, least=2)
    pace.advance(3, now=110.0)
    assert pace.seconds_left() is None
    pace.advance(4, now=111.0)
    assert pace.seconds_left() == pytest.approx(11.0 / 2 * 16)
