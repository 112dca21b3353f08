"""What methods have in common whose student learns from teachers: networks of finished runs."""

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.methods.one_student import OneStudent
from tfkd_fast.methods.protocol import Context, StepBatch
from tfkd_fast.settings import Settings


class TeacherSettings(Settings):
    """The `[teachers]` table of a recipe."""

    runs: tuple[str, ...] = ()  # run folders
    cache: str | None = None  # a file of what the teachers make of the images; without it they look at every batch
    views: int = Field(default=0, ge=0)  # epochs after which the augmentation of images repeats; 0: never


class TaughtSettings(Settings):
    """The tables of a recipe that all these methods have."""

    teachers: TeacherSettings = TeacherSettings()


class TaughtStudent(OneStudent):
    """One student and its teachers."""

    teachers: tuple[int, int | None] = (1, 1)
    specialists = False
    """Whether a teacher may know some of the classes only."""

    def __init__(self, settings: TaughtSettings, context: Context) -> None:
        """
        Raises:
            UserError: for another number of teachers than the method has, and for one that does not know all classes.
        """
        super().__init__(context)
        fewest, most = self.teachers
        count = len(context.teachers)
        if count < fewest or (most is not None and count > most):
            raise UserError(
                f"this method learns from {_some(fewest, most)}, and {count} were named: --teacher RUN_DIR names one"
            )
        for teacher in context.teachers:
            if len(teacher.labels) < context.num_classes and not self.specialists:
                raise UserError(
                    f"teacher {teacher.name} knows {len(teacher.labels)} of the {context.num_classes} classes: "
                    "this method learns from teachers of all of them"
                )

    def teacher_logits(self, batch: StepBatch) -> Tensor:
        """(n,M,B,C) float32, from all M teachers."""
        if len(batch.teachers) == 1:
            return batch.teachers[0].logits.unsqueeze(1)
        return torch.stack([teacher.logits for teacher in batch.teachers], dim=1)


def _some(fewest: int, most: int | None) -> str:
    if fewest == most:
        return "one teacher" if fewest == 1 else f"{fewest} teachers"
    return f"{fewest} or more teachers" if most is None else f"{fewest} to {most} teachers"
