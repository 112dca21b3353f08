"""CA-MKD: several teachers, each of which counts for less where it is further from the label."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, Interval, Loss, Needs, Plan, StepBatch, TeacherFacts
from tfkd_fast.methods.several_teachers.averages import Average, AverageLoss
from tfkd_fast.methods.several_teachers.connectors import Connector, connect, mean_squares
from tfkd_fast.methods.taught.student import TaughtSettings
from tfkd_fast.models.layers import average_pool
from tfkd_fast.randomness import seeded
from tfkd_fast.settings import LARGEST


class CAMKDLoss(AverageLoss):
    """The `[loss]` table, by the authors' command for VGG-8."""

    feature_weight: float = Field(default=50.0 / 3.0, ge=0, le=LARGEST)
    """Weight of the distance from the teachers' last maps in the loss; 0 leaves it out, and the method reads logits
    alone. The default is the authors' 50 for three teachers, by whose number they divide."""


class CAMKDSettings(TaughtSettings):
    """The tables of CA-MKD."""

    loss: CAMKDLoss = CAMKDLoss()
    """The divergence from the teachers' predictions, the distance from their maps, and the label beside them."""


class CAMKD(Average):
    """CA-MKD (Zhang, Chen, Wang, ICASSP 2022): teachers by how right they are, for predictions and for features.

    The loss is that of `Average` with v_m = (1 - softmax_m(CE(y, softmax(t_m)))) / (M-1), and on top of that
    feature_weight sum_m u_m mean((phi_m(F) - F_m)^2), F the last maps after ReLU and phi_m connectors that train with
    the student. u_m is v_m of what the classifier of teacher m predicts from the average of phi_m(F) instead of
    t_m, so that gradient flows through it, too, as in the authors' code. There are no features in the first epoch.

    The authors' code divides both sums by M once more; our choice is not to, as for the other averages.
    """

    @classmethod
    def needs_for(cls, settings: Any) -> Needs:
        needs = super().needs_for(settings)
        return replace(needs, features=frozenset({"stages"})) if settings.loss.feature_weight > 0 else needs

    def __init__(self, settings: CAMKDSettings, context: Context) -> None:
        """
        Raises:
            UserError: for features of a teacher whose classifier does not take its last maps, or is not given.
        """
        by_features = settings.loss.feature_weight > 0
        super().__init__(settings, context, reads_logits_alone=not by_features)
        self._feature_weight, self._by_features = settings.loss.feature_weight, False
        if not by_features:
            return
        for facts in context.teachers:
            _refuse_classifier(facts)
        width = context.need_shapes().maps[-1][0]
        with seeded(context.seed):
            connectors = [Connector("linear", width, facts.shapes.maps[-1][0]) for facts in context.teachers]
        self.adapters = self._connectors = nn.ModuleList(connectors).to(context.device)

    def resume_interval(self, interval: Interval) -> Plan:
        self._by_features = self._feature_weight > 0 and interval.first_epoch > 0
        return replace(super().resume_interval(interval), phase=self._by_features)

    def weights(self, teachers: Tensor, labels: Tensor) -> Tensor:
        return by_confidence(teachers, labels)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        loss = super().loss(logits, batch)
        if not self._by_features:
            return loss
        return loss._replace(terms={**loss.terms, "features": self._feature_weight * self._distance(batch)})

    def _distance(self, batch: StepBatch) -> Tensor:
        """The weighted distance (n,) from the teachers' maps."""
        n, student = len(batch.labels), batch.need_features().after_relu[-1]
        errors, predictions = [], []
        for connector, facts, outputs in zip(self._connectors, self.context.teachers, batch.teachers, strict=True):
            maps, target = connect(connector, student, outputs.need_features().after_relu[-1])
            errors.append(mean_squares(maps, target, n))
            predictions.append(facts.classifier(average_pool(maps)).unflatten(0, (n, -1)))
        weights = by_confidence(torch.stack(predictions, dim=1), batch.labels)
        return (weights * torch.stack(errors, dim=-1)).sum(-1).mean(-1)


def by_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """The weights (n,B,M) of M predictions with logits (n,M,B,C), for labels (n,B): together 1 for each sample."""
    repeated = labels.unsqueeze(1).expand(logits.shape[:-1])
    cross_entropy = F.cross_entropy(logits.flatten(0, 2), repeated.flatten(), reduction="none")
    errors = cross_entropy.view(logits.shape[:-1]).transpose(-1, -2)
    return (1.0 - errors.softmax(-1)) / (errors.shape[-1] - 1)


def _refuse_classifier(facts: TeacherFacts) -> None:
    """Raises UserError unless the classifier of a teacher takes the average of its last maps."""
    remedy = "set loss.feature_weight to 0, which leaves the features out"
    if isinstance(facts.classifier, nn.Identity):
        raise UserError(f"this method reads the student's features by the classifier of each teacher: {remedy}")
    width = facts.shapes.maps[-1][0]
    if facts.shapes.pooled != width:
        raise UserError(
            f"the classifier of teacher {facts.name} takes {facts.shapes.pooled} features, and its last maps have "
            f"{width} channels: {remedy}"
        )
