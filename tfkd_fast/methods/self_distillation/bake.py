"""Batch knowledge ensembling: predictions for similar images of a batch are propagated to each other."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Interval, Loss, Needs, Plan, SingleStudent, StepBatch
from tfkd_fast.settings import LARGEST, Settings

NOT_ITSELF = -1e9
"""The similarity of an image to itself, which leaves it out wherever there is another one (the authors' code)."""
REMAINDER = 1e-12
"""The share of the propagation that is left out at most, where its series is ended."""


class BAKELoss(Settings):
    """The `[loss]` table; defaults of the authors' code for CIFAR-100 (yxgeee/BAKE, small_scale)."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions."""
    weight: float = Field(default=1.0, ge=0, le=LARGEST)
    """Weight of the ensembled predictions in the loss; the label has 1."""
    omega: float = Field(default=0.5, ge=0, le=0.99)
    """Share of a target that comes from other images, in each round of the propagation."""
    images_of_class: int = Field(default=4, ge=1, le=1_000)
    """Images of a class that stand beside each other in a batch; 1 leaves batches in random order."""


class BAKESettings(Settings):
    """The tables of batch knowledge ensembling."""

    loss: BAKELoss = BAKELoss()
    """The divergence from the ensembled predictions, and the label beside it."""


class BAKE(SingleStudent):
    """CE(y, p) + weight T^2 KL(Q || softmax(z/T)), Q = (1-omega) (I - omega A)^-1 P constant, where P has the softened
    predictions of the batch and a row of A the softmax of the cosines of an image's pooled features with those of the
    others: Ge et al., "Self-distillation with Batch Knowledge Ensembling", 2021.

    The authors draw three more images of the class for each image, so that an epoch of theirs shows four times the
    images of one here: here each image is shown once, and the epoch is ordered by groups of a class (our choice). In a
    loop of one's own, the loop orders them.
    """

    @classmethod
    def needs_for(cls, settings: BAKESettings) -> Needs:
        return Needs(features=frozenset({"stages"}), mixing=False)

    def __init__(self, settings: BAKESettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss

    def resume_interval(self, interval: Interval) -> Plan:
        return replace(super().resume_interval(interval), class_groups=self._settings.images_of_class)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings = self._settings
        hard, statistics = self.cross_entropy(logits, batch.labels)
        with torch.no_grad():
            predictions = (logits / settings.temperature).softmax(-1)
            targets = ensemble(batch.need_features().pooled, predictions, settings.omega)
            teacher = settings.temperature * targets.log()  # whose softmax at the temperature they are
        soft = ops.distillation_loss(logits, teacher.unsqueeze(1), temperature=settings.temperature)
        return Loss({"hard": hard, "soft": settings.weight * soft}, statistics)


def ensemble(features: Tensor, predictions: Tensor, omega: float) -> Tensor:
    """Predictions (n,B,C) propagated along the similarities of features (n,B,D), see `BAKE`, as (n,B,C).

    The inverse is the series of powers of omega A, a product of I + (omega A)^(2^k): no solver, which on CUDA may wait
    for the device.
    """
    directions = F.normalize(features, dim=-1)
    itself = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
    similarities = directions @ directions.transpose(-1, -2)
    power = omega * similarities.masked_fill(itself, NOT_ITSELF).softmax(-1)
    targets = predictions
    rounds = math.ceil(math.log2(max(math.log(REMAINDER) / math.log(omega), 1.0))) if omega else 0
    for _ in range(rounds):
        targets = targets + power @ targets
        power = power @ power
    return (1.0 - omega) * targets
