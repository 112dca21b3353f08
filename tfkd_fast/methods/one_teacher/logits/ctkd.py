"""CTKD: distillation at a temperature that learns against the student."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast.methods.base import Context, Interval, Loss, Plan, StepBatch
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.methods.taught.warmup import warmup_factor
from tfkd_fast.settings import Settings


class CTKDLoss(Settings):
    """The `[loss]` table, by the authors' command."""

    alpha: float = Field(default=0.9, ge=0, le=1)
    """Weight of the teacher in the loss; the label has the rest."""
    lowest: float = Field(default=1.0, ge=0.01, le=1_000)
    """The lowest temperature that can be learned."""
    span: float = Field(default=20.0, ge=0, le=1_000)
    """Difference between the highest and the lowest temperature that can be learned."""
    warmup: float = Field(default=10 / 240, ge=0, le=1)
    """Share of the run over which the gradient of the temperature grows from 0 to its full length."""


class CTKDSettings(TaughtSettings):
    """The tables of curriculum temperature distillation."""

    loss: CTKDLoss = CTKDLoss()
    """The divergence from the teacher, its temperature, and the label beside it."""


class GlobalTemperature(nn.Module):
    """One temperature lowest + span sigmoid(w), which ascends the loss that the student descends."""

    def __init__(self, lowest: float, span: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self._lowest, self._span = lowest, span

    def forward(self, strength: Tensor) -> Tensor:
        """The temperature (1,), through which the gradient of w is multiplied by -strength, a number ()."""
        constant = self.weight.detach()
        reversed_weight = constant - strength * (self.weight - constant)
        return self._lowest + self._span * reversed_weight.sigmoid()


class CTKD(TaughtStudent):
    """Distillation by alpha T^2 KL(softmax(t/T) || softmax(z/T)) + (1-alpha) CE(y, softmax(z)) at a temperature T of
    `GlobalTemperature`: Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023, the global
    version.

    The strength of the reversed gradient grows along a cosine, (1 - cos(pi x)) / 2 at share x of the warm-up: in the
    authors' code over 10 epochs of 240. That it is a share of shorter and longer runs is our choice.
    """

    per_sample = True

    def __init__(self, settings: CTKDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss
        temperature = GlobalTemperature(settings.loss.lowest, settings.loss.span)
        self.adapters = self._temperature = temperature.to(context.device)
        self.strength = torch.ones((), device=context.device)
        """() float32: the present strength of the temperature's gradient; it rises to 1 over the warm-up, in place."""

    def resume_interval(self, interval: Interval) -> Plan:
        share = warmup_factor(interval.first_epoch, self._settings.warmup, self.context.epochs)
        self.strength.fill_((1.0 - math.cos(math.pi * share)) / 2.0)
        return super().resume_interval(interval)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        alpha = self._settings.alpha
        hard, statistics = self.cross_entropy(logits, batch.labels)
        temperature = self._temperature(self.strength)
        student, teacher = ((each / temperature).log_softmax(-1) for each in (logits, self.teacher_logits(batch)[:, 0]))
        each = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)  # ops have none in a temperature
        soft = temperature.square() * each.mean(-1)
        return Loss({"soft": alpha * soft, "hard": (1.0 - alpha) * hard}, statistics)

    def summary(self) -> dict[str, Any]:
        return super().summary() | {"temperature": float(self._temperature(self.strength).detach())}
