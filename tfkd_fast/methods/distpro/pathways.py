"""Pathways: which stage of a teacher teaches which stage of a student, and through which transform."""

from collections import Counter
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.models import FeatureShapes
from tfkd_fast.settings import Settings, named_once

Transform = Literal["identity-1x1", "complex"]
"""Layers that bring the student's features into the teacher's space, see `connectors` (our choice of two)."""


class PathwaySettings(Settings):
    """The `[pathways]` table."""

    all_pairs: bool = False
    """Whether deep stages of the teacher also teach shallower stages of the student."""
    transforms: Annotated[tuple[Transform, ...], AfterValidator(named_once)] = Field(
        default=("identity-1x1", "complex"), min_length=1
    )
    """Layers that bring the student's features into the teacher's space, each in a pathway of its own."""
    skip_below: float = Field(default=0.5, ge=0, lt=1)
    """Multiple of the equal share 1/K of K pathways; a pathway whose weight is less is not computed."""


class Pathway(NamedTuple):
    """From a stage of the teacher to a stage of the student, both counted from 0, a stem included, see `stage_maps`."""

    teacher_stage: int
    student_stage: int
    transform: Transform
    teacher_depth: float
    """Relative depth of the teacher's stage: 0 is the first stage, 1 the last."""
    student_depth: float
    """Relative depth of the student's stage: 0 is the first stage, 1 the last."""

    @property
    def name(self) -> str:
        """The stages and the transform, as the log names a pathway."""
        return f"{self.teacher_stage}>{self.student_stage} {self.transform}"


def stage_maps(shapes: FeatureShapes) -> tuple[tuple[int, int, int], ...]:
    """Channels, height and width of the maps of every stage, of which a stem is the first (the authors' code)."""
    return (*((shapes.stem,) if shapes.stem else ()), *shapes.maps)


def find_pathways(teacher: FeatureShapes, student: FeatureShapes, settings: PathwaySettings) -> tuple[Pathway, ...]:
    """Find the pathways between two networks, in the order of teacher stage, student stage and transform. By default
    they lead to stages of the student that lie as deep as the teacher's or deeper (the authors' code, which compares
    the numbers of the stages). Smaller maps lie deeper; of maps of one size, later ones do, and a stem lies above the
    first stage of any network (our choice).

    Raises:
        UserError: if there are none.
    """
    teacher_places, student_places = _places(teacher), _places(student)
    found = tuple(
        Pathway(i, j, transform, _relative(i, len(teacher_places)), _relative(j, len(student_places)))
        for i, teacher_place in enumerate(teacher_places)
        for j, place in enumerate(student_places)
        if settings.all_pairs or place >= teacher_place
        for transform in settings.transforms
    )
    if not found:
        raise UserError("no stage of the student lies as deep as one of the teacher's: set pathways.all_pairs = true")
    return found


def _places(shapes: FeatureShapes) -> list[tuple[int, int]]:
    """How deep each stage lies, comparable between networks."""
    earlier: Counter[int] = Counter()
    places = [(-shapes.stem[1], -1)] if shapes.stem else []
    for _, height, _ in shapes.maps:
        places.append((-height, earlier[height]))
        earlier[height] += 1
    return places


def _relative(stage: int, stages: int) -> float:
    return stage / max(1, stages - 1)


def biased_softmax(alpha: Tensor) -> Tensor:
    """The weights g_k = exp(alpha_k) / (e + sum_j exp(alpha_j)) of alpha (...,K): together less than 1.

    Source: the authors' code, options 2 and 333. What e takes is left to the label.
    """
    bias = alpha.new_ones(*alpha.shape[:-1], 1)
    return torch.softmax(torch.cat([alpha, bias], dim=-1), dim=-1)[..., :-1]


def without_small(weights: Tensor, skip_below: float) -> Tensor:
    """Weights (...,K), those below a share of 1/K zero: a pathway to skip (after the paper; the rule is our choice)."""
    return weights.masked_fill(weights * weights.shape[-1] < skip_below, 0.0)
