"""The student that search and replay have in common: it learns from labels and, along weighted pathways, from
features."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tfkd_fast.events import PathwaysWeighed
from tfkd_fast.methods.base import Context, Loss, Needs, Plan, StepBatch
from tfkd_fast.methods.distpro.connectors import Connectors
from tfkd_fast.methods.distpro.pathways import Pathway, PathwaySettings, find_pathways
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.models import Features, FeatureShapes


class PathwaysSettings(TaughtSettings):
    """The tables that the search and the replay of a process share."""

    pathways: PathwaySettings = PathwaySettings()
    """The pathways from stages of the teacher to stages of the student."""


def context_shapes(context: Context) -> tuple[FeatureShapes, FeatureShapes]:
    """The shapes of the features of the one teacher, and of the student."""
    return context.teachers[0].shapes, context.need_shapes()


def context_pathways(context: Context, settings: PathwaySettings) -> tuple[Pathway, ...]:
    """The pathways between the networks of a run, see `find_pathways`."""
    return find_pathways(*context_shapes(context), settings)


class PathwayStudent(TaughtStudent):
    """A student with the loss CE(y, p) + sum_k g_k HCL(connector_k(student's features), teacher's features) of features
    before ReLU.

    Source: Deng et al., ECCV 2022, and the authors' code.
    """

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), features=frozenset({"stages", "stem"}))

    def connect(self, pathways: Sequence[Pathway]) -> None:
        """Make the connectors of K pathways, of weight 0 for now; a subclass calls it once."""
        device = self.context.device
        self.pathways = tuple(pathways)
        connectors = Connectors(self.pathways, *context_shapes(self.context), self.context.seed)
        self._connectors = connectors.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.adapters = self._connectors
        self.weights = torch.zeros(len(self.pathways), device=device)
        """g (K,) float32, the weight of each pathway's loss; written in place, see `set_weights`."""
        self.computed: list[int] = []
        """Numbers of the pathways whose loss is computed now."""

    def set_weights(self, weights: Tensor) -> None:
        """Set the weights g (K,) of the steps to come; a pathway of weight 0 is not computed. Weights on the CPU need
        no synchronisation with the device."""
        self.weights.copy_(weights)
        self.computed = [number for number, weight in enumerate(weights.tolist()) if weight > 0]

    def begin_interval(self, epoch: int) -> Plan:
        """The event of the plan has the weights at the start of the epoch."""
        plan = super().begin_interval(epoch)
        names = tuple(pathway.name for pathway in self.pathways)
        event = PathwaysWeighed(epoch=epoch + 1, names=names, weights=tuple(self.weights.tolist()))
        return replace(plan, events=[event])

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        hard, statistics = self.cross_entropy(logits, batch.labels)
        pathways = (self.weights * self.pathway_losses(batch)).sum(-1)
        return Loss({"hard": hard, "pathways": pathways}, statistics)

    def pathway_losses(self, batch: StepBatch) -> Tensor:
        """(n,K): the loss of each pathway, 0 where it is not computed. The n candidates share connectors and batch
        norms."""
        # Connectors compute in the dtype of the maps, and hierarchical_context_loss in float32.
        student, teacher = _maps(batch.need_features()), _maps(batch.teachers[0].need_features())
        n = len(batch.labels)
        losses = [self.weights.new_zeros(n)] * len(self.pathways)
        for number in self.computed:
            pathway = self.pathways[number]
            of_student = student[pathway.student_stage].flatten(0, 1)
            of_teacher = teacher[pathway.teacher_stage].flatten(0, 1)
            losses[number] = self._connectors(number, of_student, of_teacher).unflatten(0, (n, -1)).mean(1)
        return torch.stack(losses, dim=1)

    def summary(self) -> dict[str, Any]:
        return {"pathways": len(self.pathways), "pathway_weight": self.weights.sum().item()}


def _maps(features: Features) -> list[Tensor]:
    """The maps (n,B,C,H,W) of every stage, in the order of `stage_maps` and the dtype in which they were computed."""
    features = features.as_computed()
    return [*(() if features.stem is None else (features.stem,)), *features.before_relu]
