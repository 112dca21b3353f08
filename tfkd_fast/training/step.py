"""One training step of some candidates, over tensors that keep their place: it can be captured as a CUDA graph.

No host synchronisation: the learning rate, the targets and the number of the step are read from the device, and what a
step has to tell is kept there until the epoch ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tfkd_fast.methods.base import CompanionOutputs, Method, StepBatch, TeacherOutputs
from tfkd_fast.ops import SoftTargetStats
from tfkd_fast.runs.schedule import OptimizerSettings
from tfkd_fast.teachers.teacher import Teachers
from tfkd_fast.training.adapters import Adapters
from tfkd_fast.training.feed import Shown
from tfkd_fast.training.groups import Group
from tfkd_fast.training.sgd import sgd_step


class Records(NamedTuple):
    """What the steps of an epoch read and write, on the device."""

    step: Tensor  # (1,) int64, counts from 0
    learning_rates: Tensor  # (n, steps) float32
    losses: Tensor  # (n, steps) float32, a row a candidate
    totals: Tensor  # (n,3) float64, sums over samples: correct, true-class probability, entropy

    @classmethod
    def empty(cls, candidates: int, steps: int, device: torch.device) -> "Records":
        return cls(
            torch.zeros(1, dtype=torch.int64, device=device),
            torch.zeros(candidates, steps, device=device),
            torch.zeros(candidates, steps, device=device),
            torch.zeros(candidates, 3, dtype=torch.float64, device=device),
        )

    def of(self, rows: slice) -> "Records":
        """Those of some of the candidates."""
        return self._replace(
            learning_rates=self.learning_rates[rows], losses=self.losses[rows], totals=self.totals[rows]
        )

    def restart(self, learning_rates: list[list[float]]) -> None:
        """For a new epoch; a learning rate for each candidate and step."""
        for tensor in (self.step, self.losses, self.totals):
            tensor.zero_()
        self.learning_rates.copy_(torch.tensor(learning_rates))


@dataclass(frozen=True)
class Training:
    """What the steps of an epoch are taken by."""

    method: Method
    optimizer: OptimizerSettings
    adapters: Adapters
    teachers: Teachers


def train_step(
    group: Group, shown: Shown, taught: tuple[TeacherOutputs, ...], records: Records, training: Training
) -> None:
    """Forward, loss, backward, update, statistics. The caller counts `records.step`.

    Args:
        taught: what the teachers make of the batch.
    """
    method, adapters, count = training.method, training.adapters, len(group.leaves)
    logits, batch = look(group, shown, taught, method)
    losses, statistics = loss_of(method, logits, batch, shown, group.candidates)
    leaves = [*group.leaves, *adapters.weights]
    gradients = torch.autograd.grad(losses.sum(), leaves, allow_unused=method.adapters is not None)
    learning_rates = records.learning_rates.index_select(1, records.step)
    for candidate, own, rate in zip(group.members, group.split(gradients[:count]), learning_rates, strict=True):
        _update(candidate.weights, own, candidate.momenta, rate, training.optimizer)
        if candidate.sums:
            torch._foreach_add_(candidate.sums, candidate.weights)
        if candidate.slow:
            torch._foreach_lerp_(candidate.slow, candidate.weights, 1.0 - (method.slow_decay or 0.0))
    if adapters.weights:
        _update(adapters.weights, gradients[count:], adapters.momenta, learning_rates[0], training.optimizer)
    here = torch.arange(records.losses.shape[1], device=losses.device) == records.step
    records.losses.copy_(torch.where(here, losses.detach().float().unsqueeze(1), records.losses))
    records.totals.add_(torch.stack(statistics, dim=1))


def look(group: Group, shown: Shown, taught: tuple[TeacherOutputs, ...], method: Method) -> tuple[Tensor, StepBatch]:
    """The candidates' logits (n,B,C) of what they are shown, and what else their method wants to know of it."""
    images, size = shown.batch.images, shown.batch.labels.shape[1]
    beside: CompanionOutputs | None = None
    if shown.companions is None:
        logits, features = group.forward(images)
    elif method.companion_gradient:
        both, features = group.forward(torch.cat([images, shown.companions.images], dim=1))
        logits, of_companions = both[:, :size], both[:, size:]
        features = features and features.map(lambda part: part[:, :size])
    else:
        with torch.no_grad():
            of_companions, _ = group.forward(shown.companions.images)
        logits, features = group.forward(images)
    n = len(logits)
    if shown.companions is not None:
        labels, indices = shown.companions.labels.expand(n, -1), shown.companions.indices.expand(n, -1)
        beside = CompanionOutputs(of_companions, labels, indices)
    batch = StepBatch(
        shown.batch.labels.expand(n, -1),
        shown.batch.indices.expand(n, -1),
        group.slow_forward(images)[0] if group.slow_forward else None,
        features,
        taught,
        beside,
        group.students,
    )
    return logits, batch


def loss_of(
    method: Method, logits: Tensor, batch: StepBatch, shown: Shown, candidates: slice
) -> tuple[Tensor, SoftTargetStats]:
    """Mean losses (n,) and statistics; those of mixed images count their two labels in shares."""
    losses, statistics = method.loss(logits, batch, candidates)
    if shown.mixed is None:
        return losses, statistics
    labels = shown.mixed.labels.expand(len(logits), -1)
    others, _ = method.loss(logits, batch._replace(labels=labels), candidates)
    return shown.mixed.share * losses + (1.0 - shown.mixed.share) * others, statistics


def _update(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    momenta: Sequence[Tensor],
    learning_rate: Tensor,
    settings: OptimizerSettings,
) -> None:
    """What took no part in the loss stays as it is."""
    used = [row for row in zip(weights, gradients, momenta, strict=True) if row[1] is not None]
    own = [weight for weight, _, _ in used], [g for _, g, _ in used if g is not None], [m for _, _, m in used]
    sgd_step(*own, learning_rate, settings)
