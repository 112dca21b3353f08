"""A method that asks for all that there is to ask for at once, with adapters of plain torch layers."""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.data import Companions
from tfkd_fast.methods.base import Context, Loss, Needs, StepBatch
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.randomness import seeded


class DistillerSettings(TaughtSettings):
    view: Companions = "strong"


class Distiller(TaughtStudent):
    """For residual networks, one teacher and one student."""

    @classmethod
    def needs_for(cls, settings: DistillerSettings) -> Needs:
        return replace(
            super().needs_for(settings),
            features=frozenset({"stages", "stem", "block_sums"}),
            companions=settings.view,
            companion_gradient=True,
            mixing=False,
        )

    def __init__(self, settings: DistillerSettings, context: Context) -> None:
        super().__init__(settings, context)
        (self._teacher,), own = context.teachers, context.need_shapes()
        taught = self._teacher.shapes
        with seeded(context.seed):
            last, wanted = own.block_sums[-1][0], taught.block_sums[-1][0]
            layers = {
                "stem": nn.Conv2d(own.stem[0], taught.stem[0], 1),
                "sums": nn.Sequential(nn.Conv2d(last, wanted, 3, padding=1), nn.BatchNorm2d(wanted)),
                "pooled": nn.Linear(own.pooled, taught.pooled),
            }
        self.adapters = self._layers = nn.ModuleDict(layers).to(context.device)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        hard, statistics = self.cross_entropy(logits, batch.labels)
        own, taught, beside = batch.need_features(), batch.teachers[0].need_features(), batch.need_companions()
        # A layer may be called as it is, in float32, or by the batch, in the precision of the run.
        stem = self._layers["stem"](own.stem.flatten(0, 1)).unflatten(0, own.stem.shape[:2])
        sums = batch.adapt(self._layers["sums"], own.block_sums[-1])
        projected = self._teacher.classifier(batch.adapt(self._layers["pooled"], own.pooled))
        (strong,) = batch.teach(beside.images)
        mirrored, _ = batch.forward(batch.images.flip(-1))
        terms = {
            "hard": hard,
            "stem": _distance(stem, taught.stem),
            "attention": _distance(_attention(own.after_relu[1]), _attention(taught.after_relu[1])),
            "sums": 0.1 * _distance(sums, taught.block_sums[-1]),
            "classifier": F.cross_entropy(projected.flatten(0, 1), batch.labels.flatten()).expand(len(hard)),
            "view": 0.1 * _distance(beside.logits, strong.logits),
            "features of views": _distance(beside.features.pooled, own.pooled),
            "mirrored": 0.1 * _distance(mirrored, logits),
        }
        return Loss(terms, statistics)


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.square().mean(2).flatten(2), dim=-1)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """(n,)"""
    return (first - second).square().flatten(1).mean(1)
