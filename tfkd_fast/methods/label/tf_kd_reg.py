"""Tf-KD_reg: distillation from a teacher that is made by hand; see `tf_kd` for the source."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, SingleStudent, StepBatch
from tfkd_fast.methods.label.tf_kd import PaperConvention, ReferenceConvention, TfKDLoss, multiplier
from tfkd_fast.settings import LARGEST, Forms, Settings
from tfkd_fast.steering.targets.smoothed import smoothed_tables


class TfKDRegLoss(TfKDLoss):
    """The `[loss]` table of Tf-KD_reg; numbers are the authors' for ResNet18 on CIFAR-100."""

    temperature: float = Field(default=20.0, ge=0.01, le=1_000)
    """Temperature that softens the virtual teacher, and by the paper's equations the student, too."""
    alpha: float = Field(default=0.1, ge=0, le=1)
    """Weight of the virtual teacher in the loss; the label has the rest."""
    true_mass: float = Field(default=0.99, gt=0, le=1)
    """Probability of the label by the virtual teacher before it is softened."""


class TfKDRegPaperLoss(PaperConvention, TfKDRegLoss):
    """The loss of the paper's equations."""


class TfKDRegReferenceLoss(ReferenceConvention, TfKDRegLoss):
    """The loss of the authors' code."""

    multiplier: float = Field(default=100.0, gt=0, le=LARGEST)
    """Factor kappa of the divergence; the default is the authors' for ResNet18 on CIFAR-100."""


class TfKDRegSettings(Settings):
    """The tables of Tf-KD_reg."""

    loss: Annotated[TfKDRegPaperLoss | TfKDRegReferenceLoss, Forms("convention")] = TfKDRegPaperLoss()
    """The divergence from the virtual teacher, and the label beside it."""


class TfKDReg(SingleStudent):
    """Tf-KD_reg. The virtual teacher u is right with probability 0.99 and indifferent among the other classes. Softened
    as the code does it, from probabilities, it is q = softmax(u/T), which is almost uniform: at C = 100 and T = 20 the
    label has 0.0105. It depends on the label alone, so a class table holds it. For logits z:

        paper:     alpha T^2 KL(q[y] || softmax(z/T))     + (1-alpha) CE(y, softmax(z))
        reference: alpha KL(q[y] || softmax(z)) kappa / C + (1-alpha) CE(y, softmax(z))
    """

    per_sample = True

    def __init__(self, settings: TfKDRegSettings, context: Context) -> None:
        super().__init__(settings, context)
        loss = settings.loss
        virtual = smoothed_tables(torch.tensor([loss.true_mass]), context.num_classes).squeeze(0)
        self._table = (virtual / loss.temperature).softmax(-1).to(context.device)
        self._temperature = loss.temperature if isinstance(loss, PaperConvention) else 1.0
        hard = 1.0 - loss.alpha
        soft = loss.alpha * multiplier(loss, context.num_classes)
        self._total = soft + hard  # the operator's weights sum to 1
        self._hard_weight = hard / self._total

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        loss, statistics = ops.soft_target_loss_with_stats(
            logits, batch.labels, self._table, temperature=self._temperature, hard_weight=self._hard_weight
        )
        return Loss({"hard and soft": self._total * loss}, statistics)
