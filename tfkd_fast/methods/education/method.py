"""Education distillation: the network, images and epochs of each grade, and the loss by each image's own teacher."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast import ops
from tfkd_fast.events import Event, GradeStarted, GroupsJudged
from tfkd_fast.methods.base import (
    Context,
    EpochResult,
    Loss,
    Needs,
    Plan,
    StepBatch,
    TeacherCount,
    whole_network,
)
from tfkd_fast.methods.education.curriculum import GradePlan, GradesSettings, plan_grades
from tfkd_fast.methods.education.marks import Marks
from tfkd_fast.methods.education.network import Grade, Head
from tfkd_fast.methods.taught.specialists import SideBySide
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.randomness import seeded, weights_seed
from tfkd_fast.settings import LARGEST, ReadIf, Settings


class EducationLoss(Settings):
    """The `[loss]` table. Temperature and alpha are those of the authors' code."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of teacher and student."""
    alpha: float = Field(default=0.7, ge=0, le=1)
    """Weight of the teacher in the loss; the label has the rest."""
    self_reference: float = Field(default=0.0, ge=0, le=LARGEST)
    """Weight of the head of the grade before in the loss after a promotion; 0 leaves it out."""
    self_reference_epochs: Annotated[
        int, ReadIf("self_reference", lambda weight: weight != 0, "self_reference is above 0")
    ] = Field(default=5, ge=1, le=1_000_000)
    """Epochs after a promotion in which the head of the grade before takes part in the loss."""


class EducationSettings(TaughtSettings):
    """The tables of education distillation."""

    loss: EducationLoss = EducationLoss()
    """The divergence from the teacher of each image's group, and the label beside it."""
    grades: GradesSettings = GradesSettings()
    """When the grades begin, and which classes they add."""


class Education(TaughtStudent):
    """A student that deepens in grades, each with the teacher of one more group of classes.

    There are teachers g = 1 .. G, each of a group Y_g of the classes, and as many grades. In grade n the network is the
    first stages of the student under a head of its own, at last the student itself. It learns the classes of groups 1
    .. n by

        alpha T^2 KL(softmax(t_g/T) || softmax(z[Y_g]/T)) + (1-alpha) CE(y, softmax(z)),    g the group of label y.

    Both softmaxes of the first term are over the classes of the group alone: logits of specialists cannot be compared
    across groups. The authors' code has the cross-entropy H(p,q) for the KL(p||q) of our operators; it is larger by the
    entropy of the teacher, in which the student has no part, so that the gradient is the same. It shows the groups one
    after the other (`order`); mixing them in every batch is our choice, as is all that is said to be so below.

    One teacher of all classes serves as the specialist for each group: what is due to the grades shows beside it.

    With `self_reference` w, for the first epochs of a grade, w KL(softmax(h) || softmax(z[Y_1 .. Y_n-1])) is added, h
    of the head of the grade before as it was left, on the present output of its stages: our reading of the paper's
    teaching reference.
    """

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), teachers=TeacherCount(1, None), specialists=True)

    def __init__(self, settings: EducationSettings, context: Context) -> None:
        """
        Raises:
            UserError: without a teacher, and see `plan_grades`.
        """
        super().__init__(settings, context)
        self._settings, self._replay = settings.loss, settings.grades.replay
        self._sequential, self._inherits = settings.grades.order == "sequential", settings.grades.heads == "inherited"
        self._restart = settings.grades.schedule == "restart"
        self.grades = plan_grades(settings.grades, context, len(context.need_shapes().maps))
        self._heads = [self._build_head(i, grade) for i, grade in enumerate(self.grades[:-1])]
        self.adapters = nn.ModuleList(self._heads)
        grade_of = {label: i for i, grade in enumerate(self.grades) for label in grade.group}
        self._grade_of = torch.tensor([grade_of[label] for label in range(context.num_classes)], device=context.device)
        self._teachers = [self._teachers_of_grade(number) for number in range(len(self.grades))]
        self._side_by_side = [SideBySide(context, teachers) for teachers in self._teachers]
        self.previous_logits: Tensor | None = None
        """(B,C): the logits of the previous grade's head for the latest batch; None before the first one."""
        self._marks = Marks([grade.group for grade in self.grades])
        self._set_epoch(0)

    def _build_head(self, number: int, grade: GradePlan) -> Head:
        """Build the head of a grade, four times as wide as the first stage: 256 for VGG-8 (our choice), 64 for
        ResNet-20 (the authors' code)."""
        maps = self.context.need_shapes().maps
        with seeded(weights_seed(self.context.seed, 1 + number)):
            head = Head(maps[grade.stages - 1][0], 4 * maps[0][0], grade.labels, self.context.num_classes)
        return head.to(self.context.device)

    def _teachers_of_grade(self, grade: int) -> tuple[int, ...]:
        """Numbers of the teachers whose groups a grade has."""
        if len(self.context.teachers) == 1:
            return (0,)
        return tuple(range(grade + 1)) if self._replay else (grade,)

    def _set_epoch(self, epoch: int) -> None:
        """Set the 0-based epoch, its grade, and whether the head of the grade before takes part."""
        self._epoch = epoch
        self._number = sum(epoch >= grade.first_epoch for grade in self.grades) - 1
        since = epoch - self.grades[self._number].first_epoch
        self._uses_previous_head = self._number > 0 and since < self._settings.self_reference_epochs
        self._uses_previous_head &= self._settings.self_reference > 0

    def begin_interval(self, epoch: int) -> Plan:
        self._set_epoch(epoch)
        grade, complete = self.grades[self._number], self._number == len(self._heads)
        labels = grade.labels if self._replay else grade.group
        if self._inherits and epoch == grade.first_epoch and 0 < self._number < len(self._heads):
            self._heads[self._number].inherit(self._heads[self._number - 1])
        groups = tuple(each.group for each in self.grades[: self._number + 1])
        started = GradeStarted(
            grade=self._number + 1,
            first_epoch=grade.first_epoch + 1,
            epochs=grade.end - grade.first_epoch,
            stages=grade.stages,
            labels=tuple(labels),
        )
        return replace(
            super().begin_interval(epoch),
            events=[started] if epoch == grade.first_epoch else [],
            labels=None if len(labels) == self.context.num_classes else labels,
            turns=groups if self._sequential and len(groups) > 1 else None,
            schedule=(grade.first_epoch, grade.end) if self._restart else None,
            teachers=self._teachers[self._number],
            network=whole_network if complete and not self._uses_previous_head else self._network_of_grade(complete),
            known_labels=None if complete else grade.labels,
            complete=complete,
            phase=(self._number, self._uses_previous_head),
        )

    def _network_of_grade(self, complete: bool) -> Callable[[nn.Module], nn.Module]:
        """The function that makes of a student the network of the present grade, with the student's own head once
        complete."""
        return partial(
            Grade,
            stages=self.grades[self._number].stages,
            head=None if complete else self._heads[self._number],
            watch=self._predict_by_previous_head if self._uses_previous_head else None,
        )

    def _predict_by_previous_head(self, outputs: Sequence[Tensor]) -> None:
        before = self._number - 1
        self.previous_logits = self._heads[before].predict(outputs[self.grades[before].stages - 1])

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings = self._settings
        hard, statistics = self.cross_entropy(logits, batch.labels)
        teacher_logits = self._side_by_side[self._number](batch.teachers)
        own = self._grade_of[batch.labels].unsqueeze(-1) == self._grade_of
        soft = _divergence(logits, teacher_logits, own, settings.temperature)
        terms = {"soft": settings.alpha * soft, "hard": (1.0 - settings.alpha) * hard}
        if self._uses_previous_head and self.previous_logits is not None:
            before = self._grade_of < self._number
            terms["head before"] = settings.self_reference * _divergence(logits, self.previous_logits, before, 1.0)
        return Loss(terms, statistics)

    def end_epoch(self, results: Sequence[EpochResult]) -> Iterable[Event]:
        self._marks.record(results[0].holdout_by_class)
        if self._epoch + 1 == self.grades[self._number].end:
            self._marks.end_grade()
        top1 = self._marks.latest()
        judged = GroupsJudged(epoch=self._epoch + 1, grade=self._number + 1, holdout_top1=tuple(top1))
        return [judged] if top1 else []

    def summary(self) -> dict[str, Any]:
        return super().summary() | self._marks.summary()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "marks": self._marks.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._marks.load_state_dict(state["marks"])
        self._set_epoch(state["epoch"])


def _divergence(logits: Tensor, teacher: Tensor, among: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(logits/T)), both over some classes only: means (n,), of logits (n,B,C).

    `teacher` (n,B,C) or (B,C); `among` (n,B,C) or (C,) bool. The gradient in all other logits is 0.
    """
    excluded = ~among
    return ops.distillation_loss(
        logits.masked_fill(excluded, -torch.inf),
        teacher.expand(logits.shape).masked_fill(excluded, -torch.inf).unsqueeze(1),
        temperature=temperature,
    )
