"""AB: before it learns the label, the student's neurons are to be active for the images for which the teacher's are."""

import torch
from torch import Tensor, nn

from tfkd_fast.methods.base import Context, StepBatch
from tfkd_fast.methods.one_teacher.initial_phase import InitialPhaseSettings, InitialPhaseStudent
from tfkd_fast.methods.taught.maps import pool_to_smaller, stage_pairs
from tfkd_fast.methods.taught.regressors import Regressor
from tfkd_fast.randomness import seeded

MARGIN = 1.0
"""Distance from 0 that a neuron is to keep, on the side on which the teacher's is."""
SCALE = 3.0 / 1000.0
"""Factor of the distance (the authors' code)."""


class AB(InitialPhaseStudent):
    """In the first phase: 3/1000 of the sum over pairs of stages k = 1 .. K of 2^(k-K) times the sum over neurons of (s
    + 1)^2 where s > -1 and t <= 0, and of (s - 1)^2 where s <= 1 and t > 0, of maps t of the teacher before ReLU and s
    of the student behind a `Regressor` without ReLU: Heo, Lee, Yun, Choi, Knowledge Transfer via Distillation of
    Activation Boundaries, AAAI 2019, as RepDistiller has it. Maps of one shape have no regressor."""

    per_sample = True

    def __init__(self, settings: InitialPhaseSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._pairs = stage_pairs(context)
        student, teacher = context.need_shapes().maps, context.teachers[0].shapes.maps
        with seeded(context.seed):
            connectors = nn.ModuleList(
                nn.Identity() if student[own] == teacher[other] else Regressor(student[own], teacher[other], relu=False)
                for own, other in self._pairs
            )
        self.adapters = self._connectors = connectors.to(context.device)

    def distance(self, batch: StepBatch) -> Tensor:
        student, teacher = batch.need_features().before_relu, batch.teachers[0].need_features().before_relu
        total = batch.need_features().pooled.new_zeros(batch.labels.shape[:1])
        for number, (own, other) in enumerate(self._pairs, start=1):
            maps = batch.adapt(self._connectors[number - 1], student[own]).flatten(0, 1)
            distances = boundary_distance(*pool_to_smaller(maps, teacher[other].flatten(0, 1)))
            weight = SCALE * 2.0 ** (number - len(self._pairs))
            total = total + weight * distances.unflatten(0, batch.labels.shape).mean(1)
        return total


def boundary_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared distance (B,) of maps (B,C,H,W) from the margin on the teacher's side of 0, over all neurons."""
    wrongly_on = (student > -MARGIN) & (teacher <= 0)
    wrongly_off = (student <= MARGIN) & (teacher > 0)
    errors = torch.where(wrongly_on, student + MARGIN, 0.0) + torch.where(wrongly_off, student - MARGIN, 0.0)
    return errors.square().flatten(1).sum(1)
