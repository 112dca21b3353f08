"""A student and its teachers without an engine."""

from collections.abc import Callable

import torch
from torch import nn

from tfkd_fast.methods import Context
from tfkd_fast.methods.base import TeacherFacts
from tfkd_fast.methods.education import Education
from tfkd_fast.models import FeatureShapes, ModelSettings, build_model, feature_shapes

CLASSES = 7


GROUPS = ((4, 0), (2, 6, 5), (1, 3))
"""As the teachers order them: mixed, and not all of one size."""


WIDTH = 0.125


Build = Callable[..., Education]


def build_student(model: str = "vgg8") -> nn.Module:
    return build_model(ModelSettings(name=model, width=WIDTH), CLASSES, 3, seed=0)


def context_for(
    teachers: tuple[tuple[int, ...], ...] = GROUPS, *, model: str = "vgg8", epochs: int = 20, classes: int = CLASSES
) -> Context:
    shapes = FeatureShapes((), 0)
    facts = tuple(TeacherFacts(f"run{i}", "vgg13", labels, shapes) for i, labels in enumerate(teachers, start=1))
    return Context(
        classes,
        50,
        epochs,
        0,
        torch.device("cpu"),
        lambda epoch: 1.0,
        classes=tuple("abcdefghij"[:classes]),
        model=model,
        shapes=feature_shapes(build_student(model), (3, 32, 32)),
        teachers=facts,
    )
