"""What a student is marked by, worked out by hand."""

import copy
import math
from collections.abc import Sequence

import pytest

from tests.methods.education.students import Build
from tfkd_fast.events import Event, GroupsJudged
from tfkd_fast.methods.base import EpochResult, TrainingStatistics
from tfkd_fast.methods.education import Education

NAN = math.nan
TRAINING = TrainingStatistics(1.0, 0.5, 0.5, 1.0)
BY_CLASS = {  # groups (0, 4), (2, 5, 6) and (1, 3); grades of epochs 0 to 7, 8 to 12 and 13 to 19
    0: (0.5, NAN, NAN, NAN, 0.7, NAN, NAN),
    7: (0.9, NAN, NAN, NAN, 1.0, NAN, NAN),
    8: (0.8, NAN, 0.3, NAN, 0.9, 0.6, 0.3),
    12: (0.7, NAN, 0.6, NAN, 0.8, 0.3, 0.9),
    13: (0.6, 0.1, 0.5, 0.2, 0.6, 0.5, 0.5),
    19: (0.5, 0.9, 0.7, 0.7, 0.6, 0.8, 0.9),
}


def after(education: Education, epoch: int, by_class: Sequence[float] | None) -> Sequence[Event]:
    """What is logged of an epoch."""
    education.begin_interval(epoch)
    return list(education.end_epoch([EpochResult(TRAINING, None, None if by_class is None else tuple(by_class))]))


def test_groups_are_marked_after_every_epoch(build: Build) -> None:
    education = build()
    for epoch, grade, expected in (
        (0, 1, [60, NAN, NAN]),
        (8, 2, [85, 40, NAN]),
        (19, 3, [55, 80, 80]),
    ):
        (event,) = after(education, epoch, BY_CLASS[epoch])
        assert isinstance(event, GroupsJudged)
        assert (event.epoch, event.grade) == (epoch + 1, grade)
        assert event.holdout_top1 == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("stopped_after", [None, 0, 7, 12, 13, 19])
def test_forgetting_is_what_was_lost_since_the_best_end_of_a_grade(build: Build, stopped_after: int | None) -> None:
    """Group 1 had 95 % after grade 1 and 75 % after grade 2; group 2 has risen from 60 % to 80 %."""
    education = build()
    for epoch, by_class in BY_CLASS.items():
        after(education, epoch, by_class)
        if epoch == stopped_after:
            restored = build()
            restored.load_state_dict(copy.deepcopy(education.state_dict()))
            education = restored
    summary = education.summary()
    assert summary["group_top1"] == pytest.approx([55, 80, 80])
    assert summary["group_forgetting"] == pytest.approx([40, 0, 0])


def test_a_class_without_held_out_images_does_not_count(build: Build) -> None:
    education = build()
    (event,) = after(education, 19, (NAN, 0.9, 0.7, 0.7, 0.6, NAN, 0.9))
    assert isinstance(event, GroupsJudged)
    assert event.holdout_top1 == pytest.approx([60, 80, 80])


def test_marks_that_are_no_numbers_do_not_stop_a_run(build: Build) -> None:
    education = build()
    after(education, 19, [NAN] * 7)
    assert all(math.isnan(value) for values in education.summary().values() for value in values)


def test_where_no_images_are_held_out_there_are_no_marks(build: Build) -> None:
    education = build()
    assert after(education, 19, None) == []
    assert education.summary() == {}
