"""Tf-KD_self: distillation from an earlier run of the same network; see `label.tf_kd` for the source."""

from typing import Annotated

from pydantic import Field

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context
from tfkd_fast.methods.label.tf_kd import PaperConvention, ReferenceConvention, TfKDLoss, multiplier
from tfkd_fast.methods.one_teacher.logits.kd import KD, KDLoss, KDSettings
from tfkd_fast.settings import LARGEST, Forms


class TfKDSelfLoss(TfKDLoss, KDLoss):
    """The `[loss]` table of Tf-KD_self; numbers are the authors' for ResNet18 on CIFAR-100."""

    temperature: float = Field(default=6.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of teacher and student."""
    alpha: float = Field(default=0.95, ge=0, le=1)
    """Weight of the teacher in the loss; the label has the rest."""


class TfKDSelfPaperLoss(PaperConvention, TfKDSelfLoss):
    """The loss of the paper's equations."""


class TfKDSelfReferenceLoss(ReferenceConvention, TfKDSelfLoss):
    """The loss of the authors' code."""

    multiplier: float = Field(default=50.0, gt=0, le=LARGEST)
    """Factor kappa of the divergence; the default is the authors' for ResNet18 on CIFAR-100."""


class TfKDSelfSettings(KDSettings):
    """The tables of Tf-KD_self."""

    loss: Annotated[TfKDSelfPaperLoss | TfKDSelfReferenceLoss, Forms("convention")] = TfKDSelfPaperLoss()
    """The divergence from the earlier run, and the label beside it."""


class TfKDSelf(KD):
    """Tf-KD_self. With p' the softened prediction of the earlier run, for logits z:

    paper:     alpha T^2 KL(p' || softmax(z/T))           + (1-alpha) CE(y, softmax(z))
    reference: alpha T^2 KL(p' || softmax(z/T)) kappa / C + (1-alpha) CE(y, softmax(z))
    """

    per_sample = True

    def __init__(self, settings: TfKDSelfSettings, context: Context) -> None:
        """
        Raises:
            UserError: for a teacher of another architecture, or another width, and see `TaughtStudent`.
        """
        super().__init__(settings, context)
        for teacher in context.teachers:
            if (teacher.model, teacher.shapes) != (context.model, context.shapes):
                width = " of another width" if teacher.model == context.model else ""
                raise UserError(
                    f"teacher {teacher.name} is a {teacher.model}{width} and the student a {context.model}: tf-kd-self "
                    "learns from an earlier run of the same network; choose one, or method kd"
                )
        self._soft_weight = settings.loss.alpha * multiplier(settings.loss, context.num_classes)
