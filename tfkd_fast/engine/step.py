"""One training step of some candidates, over tensors that keep their place: it can be captured as a CUDA graph.

No host synchronisation: the learning rate, the targets and the number of the step are read from the device, and what a
step has to tell is kept there until the epoch ends.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tfkd_fast.data import Batch
from tfkd_fast.engine.groups import Group
from tfkd_fast.engine.schedule import OptimizerSettings
from tfkd_fast.engine.sgd import sgd_step
from tfkd_fast.methods.protocol import Method, StepBatch


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


def train_step(group: Group, batch: Batch, records: Records, method: Method, settings: OptimizerSettings) -> None:
    """Forward, loss, backward, update, statistics. The caller counts `records.step`.

    Args:
        batch: with an axis in front, of 1 or of the n candidates in the group.
    """
    logits = group.logits(batch.images)
    n = len(logits)
    slow_logits = group.slow_logits(batch.images) if group.slow_logits else None
    shown = StepBatch(batch.labels.expand(n, -1), batch.indices.expand(n, -1), slow_logits)
    losses, statistics = method.loss(logits, shown, group.candidates)
    gradients = torch.autograd.grad(losses.sum(), group.leaves)
    learning_rates = records.learning_rates.index_select(1, records.step)
    for candidate, own, rate in zip(group.members, group.split(gradients), learning_rates, strict=True):
        sgd_step(candidate.weights, own, candidate.momenta, rate, settings)
        if candidate.sums:
            torch._foreach_add_(candidate.sums, candidate.weights)
        if candidate.slow:
            torch._foreach_lerp_(candidate.slow, candidate.weights, 1.0 - (method.slow_decay or 0.0))
    here = torch.arange(records.losses.shape[1], device=losses.device) == records.step
    records.losses.copy_(torch.where(here, losses.detach().float().unsqueeze(1), records.losses))
    records.totals.add_(torch.stack(statistics, dim=1))
