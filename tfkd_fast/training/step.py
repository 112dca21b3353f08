"""One training step of some candidates, over tensors that keep their place: it can be captured as a CUDA graph.

No host synchronisation: the learning rate, the targets and the number of the step are read from the device, and the
statistics of a step stay there until the epoch ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.data import Batch, MixPartners
from tfkd_fast.device import Compute
from tfkd_fast.methods.base import CompanionOutputs, Method, StepBatch, TeacherOutputs
from tfkd_fast.models import Features
from tfkd_fast.ops import SoftTargetStats
from tfkd_fast.ops.losses import ones_for
from tfkd_fast.runs.optimizer import OptimizerSettings
from tfkd_fast.teachers.teacher import Teachers
from tfkd_fast.training.adapters import Adapters
from tfkd_fast.training.feed import StepInput
from tfkd_fast.training.groups import Group
from tfkd_fast.training.holdout import HoldoutBatches
from tfkd_fast.training.optimizers import update
from tfkd_fast.training.ranks import ALONE, Ranks

MOST_TERMS = 16
"""The most terms of a loss that the log has separately."""


@dataclass(frozen=True)
class StepSetup:
    """All that the steps of a run have in common, without the candidates and their batch."""

    method: Method
    compute: Compute
    optimizer: OptimizerSettings
    adapters: Adapters
    teachers: Teachers
    holdout: HoldoutBatches | None
    """The held-out images that the method may look at before a step."""
    ranks: Ranks = ALONE
    """The processes that make an update together."""


class Records(NamedTuple):
    """What the steps of an epoch read and write, on the device."""

    step: Tensor
    """(1,) int64: the number of the step in its epoch, from 0."""
    learning_rates: Tensor
    """(n,steps) float32: the learning rate of each candidate and step."""
    losses: Tensor
    """(n,steps,1+MOST_TERMS) float32: the loss of each candidate and step, then its terms where it has several."""
    totals: Tensor
    """(n,3) float64: sums over samples of correct predictions, of the label's probability, and of the entropy."""
    names: list[str]
    """Names of these terms; empty where the loss has one term only."""

    @classmethod
    def empty(cls, candidates: int, steps: int, device: torch.device) -> "Records":
        """Records of zeros, for so many candidates and so many steps of an epoch."""
        return cls(
            torch.zeros(1, dtype=torch.int64, device=device),
            torch.zeros(candidates, steps, device=device),
            torch.zeros(candidates, steps, 1 + MOST_TERMS, device=device),
            torch.zeros(candidates, 3, dtype=torch.float64, device=device),
            [],
        )

    def select(self, rows: slice) -> "Records":
        """The records of the candidates in `rows`, as views."""
        return self._replace(
            learning_rates=self.learning_rates[rows], losses=self.losses[rows], totals=self.totals[rows]
        )

    def restart(self, learning_rates: list[list[float]]) -> None:
        """Set the records to zero for a new epoch, which has a learning rate for each candidate and step."""
        for tensor in (self.step, self.losses, self.totals):
            tensor.zero_()
        self.learning_rates.copy_(torch.tensor(learning_rates))

    def add(self, loss: "StepLoss") -> None:
        """Add the loss of a step.

        Raises:
            ValueError: for a loss whose terms are not those of the steps before, or are too many.
        """
        self.totals.add_(torch.stack(loss.statistics, dim=1))
        terms = loss.terms if len(loss.terms) > 1 else {}
        values = [value.detach().float().unsqueeze(1) for value in (loss.total, *terms.values())]
        if not self.names:
            self.names.extend(terms)
        if self.names != list(terms) or len(self.names) > MOST_TERMS:
            raise ValueError(
                f"the terms of a loss must have the same names in all steps of a phase, {MOST_TERMS} at most: got "
                f"{', '.join(loss.terms)} after {', '.join(self.names)}"
            )
        here = torch.stack(values, dim=2) if terms else values[0].unsqueeze(2)
        self.losses[..., : len(values)].index_copy_(1, self.step, here)


@dataclass(frozen=True)
class Turn:
    """A batch within its update, which several batches may make together."""

    size: int
    """Number of images that this process has of the batch."""
    batch: int
    """Number of images of the batch over all processes."""
    share: float
    """The share of the batch in the images of the update."""
    updates: bool
    """Whether the weights are updated after the batch."""

    @property
    def part(self) -> float:
        """The share of this process in the images of the batch."""
        return self.size / self.batch


def turns_of(batches: Sequence[int], own: Sequence[int], accumulate: int) -> list[Turn]:
    """The turn of each batch of an epoch, where so many batches make one update; those at its end may be fewer.

    Args:
        batches: number of images of each batch.
        own: how many of them this process has.
        accumulate: how many batches make an update.
    """
    turns = []
    for start in range(0, len(batches), accumulate):
        window = batches[start : start + accumulate]
        turns += [
            Turn(own[start + number], size, size / sum(window), number + 1 == len(window))
            for number, size in enumerate(window)
        ]
    return turns


def train_step(
    setup: StepSetup,
    group: Group,
    inputs: StepInput,
    teachers: tuple[TeacherOutputs, ...],
    records: Records,
    turn: Turn,
) -> None:
    """Take one step: forward pass, loss, gradient, update and statistics. The caller advances `records.step`.

    Args:
        teachers: the teachers' outputs for the batch.
        turn: what the batch is within its update.
    """
    method = setup.method
    logits, batch = forward_batch(setup, group, inputs, teachers)
    loss = step_loss(method, logits, batch, inputs.mix_partners)
    whole = turn.size == turn.batch
    gradients = torch.autograd.grad(
        loss.total,
        [*group.leaves, *setup.adapters.weights],
        ones_for(loss.total) if whole else torch.full_like(loss.total, turn.part),
        allow_unused=True,  # as auxiliary heads are
    )
    update_group(setup, group, gradients, records, turn)
    records.add(loss)


def update_group(
    setup: StepSetup, group: Group, gradients: Sequence[Tensor | None], records: Records, turn: Turn
) -> None:
    """Update a group where a batch ends an update, or add the gradients of the batch to those before it.

    Args:
        gradients: those of the leaves, then of the adapters' weights; none of a batch of which other processes have
            all images.
        turn: what the batch is within its update.
    """
    total = group.gradient_sum
    if total is None:
        _update_members(setup, group, gradients, records)
        return
    if gradients:
        total.add(gradients, turn.share)
    if turn.updates:
        _update_members(setup, group, total.over(setup.ranks), records)
        total.restart()


def _update_members(setup: StepSetup, group: Group, gradients: Sequence[Tensor | None], records: Records) -> None:
    """Update the weights of a group, those of the adapters, and all averages."""
    adapters, count = setup.adapters, len(group.leaves)
    learning_rates = records.learning_rates.index_select(1, records.step)
    for candidate, own, rate in zip(group.members, group.split(gradients[:count]), learning_rates, strict=True):
        weights = [*candidate.weights, *adapters.weights]
        update(weights, [*own, *gradients[count:]], adapters.beside(candidate.state), rate, setup.optimizer)
        if candidate.sums:
            torch._foreach_add_(candidate.sums, candidate.weights)
        if candidate.ema and setup.optimizer.ema_decay is not None:
            torch._foreach_lerp_(candidate.ema, candidate.ema_sources, 1.0 - setup.optimizer.ema_decay)
        if candidate.slow:
            torch._foreach_lerp_(candidate.slow, candidate.weights, 1.0 - (setup.method.needs.slow_decay or 0.0))


def forward_batch(
    setup: StepSetup, group: Group, inputs: StepInput, teachers: tuple[TeacherOutputs, ...]
) -> tuple[Tensor, StepBatch]:
    """Run students, and where there are any companions and slow copies, on a batch.

    Args:
        teachers: the teachers' outputs for the batch.

    Returns:
        Logits (n,B,C) with gradient, and what `Method.loss` reads beside them.
    """
    images, size = inputs.batch.images, inputs.batch.labels.shape[1]
    companions: CompanionOutputs | None = None
    if inputs.companions is None:
        logits, features = group.forward(images)
    elif setup.method.needs.companion_gradient:
        both, of_both = group.forward(torch.cat([images, inputs.companions.images], dim=1))
        logits = both[:, :size]
        features = of_both and of_both.map(lambda part: part[:, :size])
        of_companions = of_both and of_both.map(lambda part: part[:, size:])
        companions = _companion_outputs(inputs.companions, both[:, size:], of_companions)
    else:
        with torch.no_grad():
            companions = _companion_outputs(inputs.companions, *group.forward(inputs.companions.images))
        logits, features = group.forward(images)
    n = len(logits)
    batch = StepBatch(
        _expand_candidates(inputs.batch.labels, n),
        _expand_candidates(inputs.batch.indices, n),
        group.candidates.start,
        group.slow_forward(images)[0] if group.slow_forward else None,
        features and features.in_float32(),
        teachers,
        companions,
        group.students,
        _expand_candidates(images, n),
        group.forward_in_float32,
        setup.teachers.predict,
        setup.compute.autocast,
    )
    return logits, batch


def _companion_outputs(inputs: Batch, logits: Tensor, features: Features | None) -> CompanionOutputs:
    labels, indices, images = (
        _expand_candidates(column, len(logits)) for column in (inputs.labels, inputs.indices, inputs.images)
    )
    return CompanionOutputs(logits, labels, indices, features and features.in_float32(), images)


def _expand_candidates(column: Tensor, n: int) -> Tensor:
    """Expand a column (1,...), where all n candidates are shown the same, to (n,...)."""
    return column.expand(n, *column.shape[1:])


class StepLoss(NamedTuple):
    """The losses of n candidates in one step, means over the batch; for mixed images both labels count by their
    shares."""

    total: Tensor
    """(n,) with gradient: the loss that is minimised."""
    terms: Mapping[str, Tensor]
    """The terms of the loss by name, (n,) each."""
    statistics: SoftTargetStats
    """Training statistics of the batch."""


def step_loss(method: Method, logits: Tensor, batch: StepBatch, mix_partners: MixPartners | None) -> StepLoss:
    """The loss of a method; for mixed images, that of their first labels and that of their second ones, in shares."""
    loss = method.loss(logits, batch)
    total, terms = loss.total, loss.terms
    if mix_partners is not None:
        labels = mix_partners.labels.expand(len(logits), -1)
        other = method.loss(logits, replace(batch, labels=labels))
        total = mix_partners.share * total + (1.0 - mix_partners.share) * other.total
        terms = {
            name: mix_partners.share * term + (1.0 - mix_partners.share) * other.terms[name]
            for name, term in terms.items()
        }
    return StepLoss(total, terms, loss.statistics or statistics_of(logits, batch.labels))


def statistics_of(logits: Tensor, labels: Tensor) -> SoftTargetStats:
    """Training statistics of logits (n,B,C) for labels (n,B)."""
    one_hot = torch.eye(logits.shape[-1], device=logits.device)
    _, statistics = ops.soft_target_loss_with_stats(logits.detach(), labels, one_hot)
    return statistics
