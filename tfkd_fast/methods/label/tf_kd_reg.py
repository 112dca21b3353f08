"""Tf-KD_reg: distillation from a teacher that is made by hand; see `tf_kd` for the source."""

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, SingleStudent, StepBatch
from tfkd_fast.methods.label.tf_kd import TfKDLoss, multiplier
from tfkd_fast.settings import Settings
from tfkd_fast.steering.targets.smoothed import smoothed_tables

MULTIPLIER = 100.0
"""kappa, as the authors set it for ResNet18 on CIFAR-100."""


class TfKDRegLoss(TfKDLoss):
    """The `[loss]` table; numbers are the authors' for ResNet18 on CIFAR-100, the convention is our choice."""

    temperature: float = Field(default=20.0, gt=0)
    alpha: float = Field(default=0.1, ge=0, le=1)
    """Of the virtual teacher; the label has the rest."""
    true_mass: float = Field(default=0.99, gt=0, le=1)
    """Of the virtual teacher, before it is softened: the probability of the label."""


class TfKDRegSettings(Settings):
    loss: TfKDRegLoss = TfKDRegLoss()


class TfKDReg(SingleStudent):
    """Tf-KD_reg. The virtual teacher u is right with probability 0.99 and indifferent among the other classes. Softened
    as the code does it, from probabilities, it is q = softmax(u/T), which is almost uniform: at C = 100 and T = 20 the
    label has 0.0105. It depends on the label alone, so a class table holds it. For logits z:

        paper:     alpha T^2 KL(q[y] || softmax(z/T))     + (1-alpha) CE(y, softmax(z))
        reference: alpha KL(q[y] || softmax(z)) kappa / C + (1-alpha) CE(y, softmax(z))
    """

    def __init__(self, settings: TfKDRegSettings, context: Context) -> None:
        super().__init__(settings, context)
        loss = settings.loss
        virtual = smoothed_tables(torch.tensor([loss.true_mass]), context.num_classes).squeeze(0)
        self._table = (virtual / loss.temperature).softmax(-1).to(context.device)
        self._temperature = loss.temperature if loss.convention == "paper" else 1.0
        hard = 1.0 - loss.alpha
        soft = loss.alpha * multiplier(loss, MULTIPLIER, context.num_classes)
        self._total = soft + hard  # the operator's weights sum to 1
        self._hard_weight = hard / self._total

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        loss, statistics = ops.soft_target_loss_with_stats(
            logits, batch.labels, self._table, temperature=self._temperature, hard_weight=self._hard_weight
        )
        return Loss({"hard and soft": self._total * loss}, statistics)
