"""The base of methods that match features of one teacher throughout the run."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, Needs, StepBatch
from tfkd_fast.methods.taught.maps import pool_to_smaller, stage_pairs
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.settings import LARGEST, ReadIf, Settings

Weight = Annotated[float, Field(ge=0, le=LARGEST)]
"""The weight of a term of a loss."""


class FeatureLoss(Settings):
    """The keys of the `[loss]` table that all methods which match features have."""

    weight: Weight = 1.0
    """Weight of the distance from the teacher's features in the loss; the label has 1."""
    kd_weight: Weight = 0.0
    """Weight of the divergence from the teacher's softened predictions in the loss, beside the features."""
    temperature: Annotated[float, Field(ge=0.01, le=1_000), ReadIf("kd_weight", bool, "kd_weight is above 0")] = 4.0
    """Temperature that softens the predictions of teacher and student."""


class FeatureSettings(TaughtSettings):
    """The tables of a method that matches features."""

    loss: FeatureLoss = FeatureLoss()
    """The distance from the teacher's features, and the label beside it."""


class FeatureStudent(TaughtStudent):
    """CE(y, p) + weight D + kd_weight T^2 KL(softmax(t/T) || softmax(z/T)), D the distance of the student's features
    from the teacher's that a subclass defines.

    Source: the loss of RepDistiller, whose letters for the three weights are gamma, beta and alpha.
    """

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), features=frozenset({"stages"}))

    def __init__(self, settings: FeatureSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._weights = settings.loss
        self.pairs = stage_pairs(context)
        """The numbers of the stages of student and teacher that go together."""

    @abstractmethod
    def distance(self, batch: StepBatch) -> Tensor:
        """The distance D (n,) of the features of n students from the teacher's, without its weight."""

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        weights = self._weights
        hard, statistics = self.cross_entropy(logits, batch.labels)
        terms = {"hard": hard, "features": weights.weight * self.distance(batch)}
        if weights.kd_weight:
            soft = ops.distillation_loss(logits, self.teacher_logits(batch), temperature=weights.temperature)
            terms["soft"] = weights.kd_weight * soft
        return Loss(terms, statistics)

    def sum_over_pairs(self, batch: StepBatch, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum over the pairs of stages of a distance that is measured map by map, (n,).

        Args:
            batch: the batch of a step.
            measure: takes the maps after ReLU (n*B,C,H,W) of the students and (n*B,D,H,W) of the teacher, pooled to one
                size, and gives a distance for each image, (n*B,).
        """
        student, teacher = batch.need_features().after_relu, batch.teachers[0].need_features().after_relu
        total = batch.need_features().pooled.new_zeros(batch.labels.shape[:1])
        for own, other in self.pairs:
            distances = measure(*pool_to_smaller(student[own].flatten(0, 1), teacher[other].flatten(0, 1)))
            total = total + distances.unflatten(0, batch.labels.shape).mean(1)
        return total
