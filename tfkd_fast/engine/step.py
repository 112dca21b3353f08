"""One training step of some candidates, over tensors that keep their place: it can be captured as a CUDA graph.

No host synchronisation: the learning rate, the targets and the number of the step are read from the device, and what a
step has to tell is kept there until the epoch ends.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tfkd_fast.engine.groups import Group
from tfkd_fast.engine.schedule import OptimizerSettings
from tfkd_fast.engine.sgd import sgd_step
from tfkd_fast.methods.protocol import Method


class Records(NamedTuple):
    """What the steps of an epoch read and write, on the device."""

    step: Tensor  # (1,) int64, counts from 0
    learning_rates: Tensor  # (steps,) float32
    losses: Tensor  # (n, steps) float32, a row a candidate
    totals: Tensor  # (n,3) float64, sums over samples: correct, true-class probability, entropy

    @classmethod
    def empty(cls, candidates: int, steps: int, device: torch.device) -> "Records":
        return cls(
            torch.zeros(1, dtype=torch.int64, device=device),
            torch.zeros(steps, device=device),
            torch.zeros(candidates, steps, device=device),
            torch.zeros(candidates, 3, dtype=torch.float64, device=device),
        )

    def of(self, rows: slice) -> "Records":
        """Those of some of the candidates."""
        return self._replace(losses=self.losses[rows], totals=self.totals[rows])

    def restart(self, learning_rates: list[float]) -> None:
        """For a new epoch."""
        for tensor in (self.step, self.losses, self.totals):
            tensor.zero_()
        self.learning_rates.copy_(torch.tensor(learning_rates))


def train_step(
    group: Group, images: Tensor, labels: Tensor, records: Records, method: Method, settings: OptimizerSettings
) -> None:
    """Forward, loss, backward, update, statistics. The caller counts `records.step`.

    Args:
        images: (1,B,C,H,W) or (n,B,C,H,W), for n candidates in the group.
        labels: (1,B) or (n,B) int64.
    """
    logits = group.logits(images)
    losses, statistics = method.loss(logits, labels.expand(len(logits), -1), group.candidates)
    gradients = torch.autograd.grad(losses.sum(), group.weights)
    learning_rate = records.learning_rates.index_select(0, records.step)
    sgd_step(group.weights, gradients, group.momenta, learning_rate, settings)
    if group.sums:
        torch._foreach_add_(group.sums, [weight.detach() for weight in group.weights])
    here = torch.arange(records.losses.shape[1], device=losses.device) == records.step
    records.losses.copy_(torch.where(here, losses.detach().float().unsqueeze(1), records.losses))
    records.totals.add_(torch.stack(statistics, dim=1))
