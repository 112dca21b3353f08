"""Who is taught what and when, and what is refused."""

from typing import Any

import pytest

from tests.methods.education.students import CLASSES, GROUPS, Build, context_for
from tfkd_fast.errors import UserError
from tfkd_fast.events import GradeStarted
from tfkd_fast.methods.education import EducationSettings
from tfkd_fast.methods.education.curriculum import GradePlan, GradesSettings, plan_grades

ALL = tuple(range(CLASSES))


def plan(
    teachers: tuple[tuple[int, ...], ...], stages: int, epochs: int, classes: int, **grades: Any
) -> list[GradePlan]:
    settings = GradesSettings(**grades)
    return plan_grades(settings, context_for(teachers, epochs=epochs, classes=classes), stages)


def test_the_classes_of_the_paper() -> None:
    """CIFAR-100 by index, 33, 33 and 34 classes, from one teacher of all. The authors' grades begin with the epochs 150
    and 180, counted from 1."""
    settings = EducationSettings().grades
    context = context_for((tuple(range(100)),), epochs=240, classes=10)
    context = type(context)(**(context.__dict__ | {"num_classes": 100, "classes": tuple(map(str, range(100)))}))
    for name, starts in (("restart", [0, 96, 156]), ("paper", [0, 149, 179])):
        grades = plan_grades(settings.model_copy(update={"schedule": name}), context, 5)
        assert [(grade.group[0], grade.group[-1], len(grade.group)) for grade in grades] == [
            (0, 32, 33),
            (33, 65, 33),
            (66, 99, 34),
        ]
        assert [grade.labels for grade in grades] == [tuple(range(end)) for end in (33, 66, 100)]
        assert [grade.first_epoch for grade in grades] == starts
        assert [grade.end for grade in grades] == [*starts[1:], 240]


@pytest.mark.parametrize(
    ("groups", "stages", "ends"),
    [
        (2, 5, [2, 5]),
        (2, 3, [2, 3]),
        (3, 5, [2, 3, 5]),
        (3, 3, [1, 2, 3]),
        (4, 5, [1, 2, 4, 5]),
        (5, 5, [1, 2, 3, 4, 5]),
    ],
)
def test_stages_are_shared_out_among_the_grades(groups: int, stages: int, ends: list[int]) -> None:
    teachers = tuple((2 * i, 2 * i + 1) for i in range(groups))
    grades = plan(teachers, stages, 20, 2 * groups)
    assert [grade.stages for grade in grades] == ends
    if groups != 3:
        assert [grade.first_epoch for grade in grades] == [round(20 * i / groups) for i in range(groups)]


def test_groups_are_those_of_the_teachers_in_their_order() -> None:
    grades = plan(GROUPS, 5, 20, CLASSES, promotions=(0.1, 0.9))
    assert [grade.group for grade in grades] == [(0, 4), (2, 5, 6), (1, 3)]
    assert [grade.labels for grade in grades] == [(0, 4), (0, 2, 4, 5, 6), ALL]
    assert [grade.first_epoch for grade in grades] == [0, 2, 18]


def test_groups_of_one_teacher_may_be_chosen_by_name_and_label() -> None:
    grades = plan((ALL,), 5, 20, CLASSES, groups=["e,a", ["f", 2, "g"], "1,3"])
    assert [grade.group for grade in grades] == [(0, 4), (2, 5, 6), (1, 3)]


def test_intervals_are_epochs_of_the_classes_so_far_at_a_learning_rate_of_their_own(build: Build) -> None:
    education = build()
    plans = [education.begin_interval(epoch) for epoch in range(20)]
    assert [(plan.interval.first_epoch, plan.interval.epochs) for plan in plans] == [(epoch, 1) for epoch in range(20)]
    assert [plan.labels for plan in plans] == [(0, 4)] * 8 + [(0, 2, 4, 5, 6)] * 5 + [None] * 7
    assert [plan.schedule for plan in plans] == [(0, 8)] * 8 + [(8, 13)] * 5 + [(13, 20)] * 7
    events = [event for plan in plans for event in plan.events]
    assert [(event.grade, event.first_epoch, event.epochs) for event in events if isinstance(event, GradeStarted)] == [
        (1, 1, 8),
        (2, 9, 5),
        (3, 14, 7),
    ]


@pytest.mark.parametrize(
    ("teachers", "replay", "wanted"),
    [
        (GROUPS, True, [(0,), (0, 1), (0, 1, 2)]),
        (GROUPS, False, [(0,), (1,), (2,)]),
        ((ALL,), True, [(0,), (0,), (0,)]),
    ],
)
def test_teachers_of_later_groups_need_not_look(
    build: Build, teachers: tuple[tuple[int, ...], ...], replay: bool, wanted: list[tuple[int, ...]]
) -> None:
    education = build(teachers, grades={"replay": replay})
    for epoch, expected in zip((0, 8, 13), wanted, strict=True):
        assert education.begin_interval(epoch).teachers == expected


@pytest.mark.parametrize("replay", [True, False])
def test_a_grade_is_judged_by_all_classes_that_it_knows(build: Build, replay: bool) -> None:
    """Also by those that it is taught no more."""
    education = build(grades={"replay": replay})
    for epoch, expected in ((0, (0, 4)), (7, (0, 4)), (8, (0, 2, 4, 5, 6)), (13, None)):
        assert education.begin_interval(epoch).known_labels == expected


def test_the_schedule_of_the_paper_is_that_of_the_run(build: Build) -> None:
    education = build(grades={"schedule": "paper"})
    assert [education.begin_interval(epoch).schedule for epoch in (0, 11, 12, 15)] == [None] * 4
    assert [education.begin_interval(epoch).labels for epoch in (11, 12, 15)] == [(0, 4), (0, 2, 4, 5, 6), None]


def test_groups_are_shown_one_after_the_other_where_that_is_wanted(build: Build) -> None:
    education = build(grades={"order": "sequential"})
    assert [education.begin_interval(epoch).turns for epoch in (0, 8, 13)] == [
        None,
        ((0, 4), (2, 5, 6)),
        ((0, 4), (2, 5, 6), (1, 3)),
    ]
    assert build().begin_interval(13).turns is None
    with pytest.raises(ValueError, match="order is read only where replay is true"):
        EducationSettings.model_validate({"grades": {"order": "sequential", "replay": False}})


def test_without_replay_a_grade_is_taught_its_own_group_alone(build: Build) -> None:
    education = build(grades={"replay": False})
    assert [education.begin_interval(epoch).labels for epoch in (0, 8, 13)] == [(0, 4), (2, 5, 6), (1, 3)]


@pytest.mark.parametrize(
    ("teachers", "grades", "facts", "sentence"),
    [
        ((), {}, {}, "this method learns from 1 or more teachers, and 0 were named"),
        (((0, 1, 2),), {}, {}, "teacher run1 knows 3 of the 7 classes: education wants several that know all of them"),
        (((0, 1, 2), (2, 3, 4, 5, 6)), {}, {}, "class 'c' is in teacher run1 and in teacher run2: no two groups"),
        ((ALL, ALL), {}, {}, "class 'a' is in teacher run1 and in teacher run2"),
        (((0, 1, 2), (4, 5, 6)), {}, {}, "class 'd' is in none of teacher run1, teacher run2: together they must"),
        (GROUPS, {"groups": ["0-3", "4-6"]}, {}, "grades.groups is for one teacher, and 3 bring their own"),
        ((ALL,), {"groups": ["0-3", "3-6"]}, {}, "class 'd' is in group 1 of grades.groups and in group 2 of grades.g"),
        ((ALL,), {"groups": ["0-2", "4-6"]}, {}, "class 'd' is in none of group 1 of grades.groups, group 2 of"),
        ((ALL,), {"groups": ["0-2", "3-5,h"]}, {}, "grades.groups names 'h', which is no class"),
        ((ALL[:4],), {}, {"classes": 4}, "group 1 of 3 has 1 of 4 classes: a group needs two or more"),
        (GROUPS, {}, {"epochs": 2}, "grades that begin after 0, 1, 1 of 2 epochs do not all get one"),
        (GROUPS, {"promotions": (0.5, 0.4)}, {}, "grades that begin after 0, 10, 8 of 20 epochs do not all get one"),
        (GROUPS, {"promotions": (0.5, 0.99)}, {}, "grades that begin after 0, 10, 20 of 20 epochs"),
        (
            GROUPS,
            {"promotions": (0.5,)},
            {},
            "grades.promotions has 1 fractions of the run, but 3 grades have 2 promot",
        ),
    ],
)
def test_what_makes_no_curriculum_is_refused(
    build: Build, teachers: tuple[tuple[int, ...], ...], grades: dict[str, Any], facts: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        build(teachers, grades=grades, **facts)


def test_a_network_of_too_few_stages_is_refused(build: Build) -> None:
    with pytest.raises(UserError, match="4 groups of classes are taught in 4 grades, but resnet20 has 3 stages"):
        build(((0, 1), (2, 3), (4, 5), (6, 7)), model="resnet20", classes=8)


@pytest.mark.parametrize(
    "tables",
    [
        {"loss": {"temperature": 0}},
        {"loss": {"alpha": 1.5}},
        {"loss": {"self_reference": -1}},
        {"loss": {"self_reference_epochs": 0}},
        {"grades": {"schedule": "cosine"}},
        {"grades": {"promotions": [0.5, 1.0]}},
        {"grades": {"groups": ["0-9"]}},
        {"grades": {"order": "reversed"}},
        {"grades": {"heads": "old"}},
    ],
)
def test_settings_are_checked(tables: dict[str, Any]) -> None:
    (table, values), *_ = tables.items()
    with pytest.raises(ValueError, match=f"{table}.{next(iter(values))}"):
        EducationSettings.model_validate(tables)
