"""Knowledge distillation from specialists as if they were one teacher: what education distillation is compared with."""

from dataclasses import replace

from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, Needs, StepBatch, TeacherCount
from tfkd_fast.methods.one_teacher.logits.kd import KD, KDSettings
from tfkd_fast.methods.taught.specialists import SideBySide, specialist_groups
from tfkd_fast.methods.taught.student import TaughtSettings


class SpecialistsKD(KD):
    """Distillation by alpha T^2 KL(softmax(t/T) || softmax(z/T)) + (1-alpha) CE(y, softmax(z)), as `KD` has it, for the
    logits t of teachers that know a group of the classes each, side by side. The preset of alpha is education's, so
    that the two differ in the grades and the softmax alone (our choice).

    The calibration trap: no specialist has learned how sure it may be of an image of another group, and its logits have
    a level of their own, which its own softmax does not see. Here one softmax compares them all, so that a class of
    another group may get most of the mass, and one teacher that is louder than the others drowns them. A student that
    does worse than by education may thus suffer from this softmax alone, not from the want of grades.
    """

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), teachers=TeacherCount(2, None), specialists=True)

    def __init__(self, settings: KDSettings, context: Context) -> None:
        """
        Raises:
            UserError: for fewer than two teachers, for teachers that do not divide the classes among them, and for
                professors.
        """
        super().__init__(settings, context)
        specialist_groups(context)
        if settings.professor is not None:
            raise UserError(
                "a professor refines a teacher of all classes, and those of this method know some each: leave out the "
                "[professor] table"
            )
        self._side_by_side = SideBySide(context, range(len(context.teachers)))

    def teacher_logits(self, batch: StepBatch) -> Tensor:
        """(n,1,B,C) float32: logits of all teachers as one, corrected by the label where the recipe says so."""
        return self._correct(self._side_by_side(batch.teachers), batch.labels).unsqueeze(1)
