"""The base of methods whose student learns from teachers, which are the networks of finished runs."""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.events import Event
from tfkd_fast.methods.base import (
    Context,
    Interval,
    Material,
    Needs,
    Plan,
    SingleStudent,
    StepBatch,
    TeacherCount,
    TeacherTable,
)
from tfkd_fast.methods.professor import Professors, ProfessorSettings
from tfkd_fast.methods.taught.corrections import Correction, keep_logits, mix_label, swap_label
from tfkd_fast.settings import Forms, Settings


class TeacherBase(TeacherTable):
    """The teachers of a run, and the correction of their logits by the label."""

    adjust: str
    """Correction of the teachers' logits by the label: none, the label mixed into the softened predictions (label-mix),
    or the largest logit exchanged for that of the label where a teacher errs (swap; Wen et al., arXiv 1911.07471)."""


class UncorrectedTeachers(TeacherBase):
    """Teachers as they are."""

    adjust: Literal["none"] = "none"


class LabelMixTeachers(TeacherBase):
    """Teachers with the label mixed into their softened predictions."""

    adjust: Literal["label-mix"]
    label_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the label in the mixture; the teacher's prediction has the rest."""


class SwapTeachers(TeacherBase):
    """Teachers whose largest logit is exchanged for that of the label where they err."""

    adjust: Literal["swap"]


TeacherSettings = Annotated[UncorrectedTeachers | LabelMixTeachers | SwapTeachers, Forms("adjust")]
"""The `[teachers]` table."""


class TaughtSettings(Settings):
    """The tables of a recipe that all methods with teachers have."""

    teachers: TeacherSettings = UncorrectedTeachers()
    """The runs that the student learns from, and the correction of their logits by the label."""
    professor: ProfessorSettings | None = None
    """The professor that refines the logits of each teacher; unset, nothing refines them."""


class TaughtStudent(SingleStudent):
    """One student and its teachers, which know all classes unless a subclass says otherwise.

    Between them there may stand what refines the teachers' logits: a correction by the label, or a professor each. A
    method that reads nothing of the teachers but `teacher_logits` need not know.
    """

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        """One teacher; a professor reads its features."""
        refined = settings.professor is not None
        return Needs(
            teachers=TeacherCount(1, 1), features=frozenset({"stages"}) if refined else frozenset(), material=refined
        )

    def __init__(self, settings: TaughtSettings, context: Context, *, temperature: float | None = None) -> None:
        """`temperature` is that at which `teacher_logits` are softened; None for a method that reads anything else of
        the teachers.

        Raises:
            UserError: for another number of teachers than the method has, for one that does not know all classes, and
                for refinements that do not go together or not with the method.
        """
        super().__init__(settings, context)
        count = len(context.teachers)
        if not self.needs.teachers.includes(count):
            raise UserError(
                f"this method learns from {self.needs.teachers.describe()}, and {count} were named: --teacher RUN_DIR "
                "names one"
            )
        for teacher in context.teachers:
            if len(teacher.labels) < context.num_classes and not self.needs.specialists:
                raise UserError(
                    f"teacher {teacher.name} knows {len(teacher.labels)} of the {context.num_classes} classes: "
                    "this method learns from teachers of all of them"
                )
        self.professors: Professors | None = None
        """The professors that refine the logits of the teachers; None without a `[professor]` table."""
        self._correct: Correction = keep_logits
        """The correction of the logits (n,B,C) of one teacher by the labels (n,B)."""
        adjust = settings.teachers.adjust
        if adjust == "none" and settings.professor is None:
            return
        if temperature is None:
            raise UserError(
                "this method learns from more than softened predictions, so its teachers are taken as they are: set "
                "teachers.adjust to none and leave out the [professor] table"
            )
        if settings.professor is not None:
            if adjust != "none":
                raise UserError(
                    f"teachers.adjust {adjust} is what a professor is compared with: set it to none, or leave "
                    "out the [professor] table"
                )
            self.professors = Professors(settings.professor, context, temperature)
        match settings.teachers:
            case LabelMixTeachers(label_share=share):
                self._correct = partial(mix_label, share=share, temperature=temperature)
            case SwapTeachers():
                self._correct = swap_label

    def teacher_logits(self, batch: StepBatch) -> Tensor:
        """(n,M,B,C) float32: the logits of all M teachers, refined."""
        if self.professors is not None:
            return self.professors.refine(batch)
        if len(batch.teachers) == 1:
            return self._correct(batch.teachers[0].logits, batch.labels).unsqueeze(1)
        return torch.stack([self._correct(teacher.logits, batch.labels) for teacher in batch.teachers], dim=1)

    def prepare(self, material: Material) -> Iterable[Event]:
        return () if self.professors is None else self.professors.fit(material)

    def resume_interval(self, interval: Interval) -> Plan:
        if self.professors is not None:
            self.professors.begin_epoch(interval.first_epoch)
        return super().resume_interval(interval)

    def summary(self) -> dict[str, Any]:
        return super().summary() | ({} if self.professors is None else {"professors": self.professors.summary()})

    def state_dict(self) -> dict[str, Any]:
        professors = {} if self.professors is None else {"professors": self.professors.state_dict()}
        return super().state_dict() | professors

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.professors is not None:
            self.professors.load_state_dict(state["professors"])
