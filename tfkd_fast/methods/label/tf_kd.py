"""Teacher-free knowledge distillation: the teacher is an earlier run of the same network, or made by hand.

Yuan et al., "Revisiting knowledge distillation via label smoothing regularization", CVPR 2020, and the authors' code,
which does not compute what the equations say; `convention` names the one that is meant:

* paper: both predictions are softened (equations 5 and 9), and the divergence is a mean over the batch. The equations
  have no T^2; the authors call it necessary for Tf-KD_self (issue 14 of their repository), for Tf-KD_reg it is our
  choice.
* reference: the divergence is a mean over batch and classes, 1/C of the other, times a multiplier kappa that they tuned
  for each network. With kappa = C it is a mean over the batch again. Tf-KD_reg neither softens the student nor has T^2.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, OneStudent, StepBatch
from tfkd_fast.methods.one_teacher.kd import KD, KDLoss, KDSettings
from tfkd_fast.ops import SoftTargetStats
from tfkd_fast.settings import Settings
from tfkd_fast.steering.targets.smoothed import smoothed_tables


class TfKDLoss(Settings):
    """What the `[loss]` tables share."""

    convention: Literal["paper", "reference"] = "paper"
    """Whether as the paper's equations or as the authors' code has it."""
    multiplier: float | None = Field(default=None, gt=0)
    """Reference: kappa; without it the authors' value."""

    @model_validator(mode="after")
    def _a_multiplier_is_read(self) -> Self:
        if self.convention == "paper" and self.multiplier is not None:
            raise ValueError('the paper has no multiplier: leave it out, or set loss.convention to "reference"')
        return self


class TfKDSelfLoss(TfKDLoss, KDLoss):
    """The `[loss]` table; numbers are the authors' for ResNet18 on CIFAR-100, the convention is our choice."""

    temperature: float = Field(default=6.0, gt=0)
    alpha: float = Field(default=0.95, ge=0, le=1)
    """Of the teacher; the label has the rest."""


class TfKDSelfSettings(KDSettings):
    loss: TfKDSelfLoss = TfKDSelfLoss()


class TfKDRegLoss(TfKDLoss):
    """The `[loss]` table; numbers are the authors' for ResNet18 on CIFAR-100, the convention is our choice."""

    temperature: float = Field(default=20.0, gt=0)
    alpha: float = Field(default=0.1, ge=0, le=1)
    """Of the virtual teacher; the label has the rest."""
    true_mass: float = Field(default=0.99, gt=0, le=1)
    """Of the virtual teacher, before it is softened: the probability of the label."""


class TfKDRegSettings(Settings):
    loss: TfKDRegLoss = TfKDRegLoss()


SELF_MULTIPLIER, REG_MULTIPLIER = 50.0, 100.0
"""kappa, as the authors set it for ResNet18 on CIFAR-100."""


def multiplier(loss: TfKDLoss, default: float, num_classes: int) -> float:
    """Of a divergence that is a mean over the batch, as the convention has it."""
    return 1.0 if loss.convention == "paper" else (loss.multiplier or default) / num_classes


class TfKDSelf(KD):
    """Tf-KD_self. With p' the softened prediction of the earlier run, for logits z:

    paper:     alpha T^2 KL(p' || softmax(z/T))           + (1-alpha) CE(y, softmax(z))
    reference: alpha T^2 KL(p' || softmax(z/T)) kappa / C + (1-alpha) CE(y, softmax(z))
    """

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
        self._soft_weight = settings.loss.alpha * multiplier(settings.loss, SELF_MULTIPLIER, context.num_classes)


class TfKDReg(OneStudent):
    """Tf-KD_reg. The virtual teacher u is right with probability 0.99 and indifferent among the other classes. Softened
    as the code does it, from probabilities, it is q = softmax(u/T), which is almost uniform: at C = 100 and T = 20 the
    label has 0.0105. It depends on the label alone, so a class table holds it. For logits z:

        paper:     alpha T^2 KL(q[y] || softmax(z/T))     + (1-alpha) CE(y, softmax(z))
        reference: alpha KL(q[y] || softmax(z)) kappa / C + (1-alpha) CE(y, softmax(z))
    """

    def __init__(self, settings: TfKDRegSettings, context: Context) -> None:
        super().__init__(context)
        loss = settings.loss
        virtual = smoothed_tables(torch.tensor([loss.true_mass]), context.num_classes).squeeze(0)
        self._table = (virtual / loss.temperature).softmax(-1).to(context.device)
        self._temperature = loss.temperature if loss.convention == "paper" else 1.0
        hard = 1.0 - loss.alpha
        soft = loss.alpha * multiplier(loss, REG_MULTIPLIER, context.num_classes)
        self._total = soft + hard  # the operator's weights sum to 1
        self._hard_weight = hard / self._total

    def loss(self, logits: Tensor, batch: StepBatch, candidates: slice) -> tuple[Tensor, SoftTargetStats]:
        loss, statistics = ops.soft_target_loss_with_stats(
            logits, batch.labels, self._table, temperature=self._temperature, hard_weight=self._hard_weight
        )
        return self._total * loss, statistics
