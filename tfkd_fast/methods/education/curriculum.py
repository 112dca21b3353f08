"""The curriculum: the groups of classes, the stages of the network and the epochs of each grade."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from tfkd_fast.data import ClassChoice, find_labels
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context
from tfkd_fast.methods.taught.specialists import check_partition, specialist_groups
from tfkd_fast.settings import ReadIf, Settings

GRADES = 3
"""Number of grades in the paper: primary school, middle school, university."""
PROMOTIONS = {"restart": (0.4, 0.65), "paper": (149 / 240, 179 / 240)}
"""Promotions of three grades, as fractions of the run, by the schedule. 96 and 156 of 240 epochs are our choice; 149
and 179 are those of the authors' code, whose grades begin with the epochs 150 and 180, counted from 1."""


class GradesSettings(Settings):
    """The `[grades]` table."""

    schedule: Literal["restart", "paper"] = "restart"
    """Course of the learning rate: it starts again in every grade (restart, our choice), or it goes on falling, so that
    the stages of the last grade never train at a high one (paper, as the authors' code does)."""
    promotions: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    """Beginnings of the grades after the first, as shares of the run; unset, three grades begin at 0.4 and 0.65
    (restart) or after 149 and 179 of 240 epochs (paper), and any other number of grades evenly."""
    groups: tuple[ClassChoice, ...] | None = Field(default=None, min_length=2)
    """Groups of classes, for one teacher of all classes; unset, there are three in the order of the labels."""
    replay: bool = True
    """Whether the classes of earlier grades are taught again; if not, one sees what is forgotten."""
    order: Annotated[Literal["mixed", "sequential"], ReadIf("replay", lambda replay: replay, "replay is true")] = (
        "mixed"
    )
    """Whether every batch has images of all groups so far (mixed, our choice), or an epoch shows one group after the
    other (sequential, as the authors' code does)."""
    heads: Literal["new", "inherited"] = "new"
    """Whether the head of a grade starts from random weights (new, our choice), or, but for its convolution, from those
    that the head before has for the classes which it knows (inherited, after the authors' code, which means to pass on
    what fits). The last grade has the student's own head, which is new."""


@dataclass(frozen=True)
class GradePlan:
    """The plan of one grade. Epochs are 0-based."""

    group: tuple[int, ...]
    """Labels that the grade adds."""
    labels: tuple[int, ...]
    """Labels of this grade and of those before it, ascending."""
    stages: int
    """Number of stages of the network that take part."""
    first_epoch: int
    end: int


def plan_grades(settings: GradesSettings, context: Context, stages: int) -> list[GradePlan]:
    """Plan the grades of a student with so many stages.

    Raises:
        UserError: for teachers or groups that do not divide the classes among them, and for more grades than there are
            stages or epochs for.
    """
    groups = _groups(settings, context)
    count = len(groups)
    if count > stages:
        raise UserError(
            f"{count} groups of classes are taught in {count} grades, but {context.model} has {stages} stages: choose "
            "fewer groups"
        )
    epochs = [*_first_epochs(settings, count, context.epochs), context.epochs]
    return [
        GradePlan(
            group=tuple(groups[i]),
            labels=tuple(sorted(label for group in groups[: i + 1] for label in group)),
            stages=round(stages * (i + 1) / count),  # of a VGG's five 2, 3 and 5, of a residual network's 1, 2 and 3
            first_epoch=epochs[i],
            end=epochs[i + 1],
        )
        for i in range(count)
    ]


def _groups(settings: GradesSettings, context: Context) -> list[list[int]]:
    """The labels of each group: those of the teachers, or for one teacher of all classes those of the settings."""
    teachers, classes = context.teachers, context.num_classes
    if len(teachers) > 1:
        if settings.groups is not None:
            raise UserError(f"grades.groups is for one teacher, and {len(teachers)} bring their own: leave it out")
        return specialist_groups(context)
    if len(teachers[0].labels) < classes:
        raise UserError(
            f"teacher {teachers[0].name} knows {len(teachers[0].labels)} of the {classes} classes: education wants "
            "several that know all of them together, or one that knows them all"
        )
    if settings.groups is None:
        groups = [list(range(i * classes // GRADES, (i + 1) * classes // GRADES)) for i in range(GRADES)]
        sources = [f"group {i} of {GRADES}" for i in range(1, GRADES + 1)]
    else:
        groups = [find_labels(group, context.classes, "grades.groups") for group in settings.groups]
        sources = [f"group {i} of grades.groups" for i in range(1, len(groups) + 1)]
    check_partition(groups, sources, context)
    return groups


def _first_epochs(settings: GradesSettings, grades: int, epochs: int) -> list[int]:
    evenly = tuple(i / grades for i in range(1, grades))
    fractions = settings.promotions or (PROMOTIONS[settings.schedule] if grades == GRADES else evenly)
    if len(fractions) != grades - 1:
        raise UserError(
            f"grades.promotions has {len(fractions)} fractions of the run, but {grades} grades have {grades - 1} "
            "promotions: name as many"
        )
    starts = [0, *(round(fraction * epochs) for fraction in fractions)]
    if any(start >= end for start, end in pairwise([*starts, epochs])):
        raise UserError(
            f"grades that begin after {', '.join(map(str, starts))} of {epochs} epochs do not all get one: "
            "raise epochs or change grades.promotions"
        )
    return starts
