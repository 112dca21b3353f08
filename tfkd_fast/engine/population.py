"""The trained state: P >= 1 candidates of one architecture; a single student is P = 1."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from tfkd_fast.engine.schedule import OptimizerSettings

Tree = dict[str, Any]


class Candidate:
    """One student and its optimiser: as state, a plain tree of tensors and numbers that can travel."""

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
            fused=next(model.parameters()).is_cuda,  # on the CPU the plain loop over tensors is faster
        )
        self.epoch_average: AveragedModel | None = None
        """Running average of the weights over the steps of an epoch, while one is wanted."""
        self.interval_average: AveragedModel | None = None
        """Average of the end-of-epoch weights of an interval, while one is wanted."""

    def start_average(self) -> AveragedModel:
        """An average of this model's weights, empty so far. Its batch norm is to be re-estimated before use."""
        return AveragedModel(self.model, multi_avg_fn=get_swa_multi_avg_fn())

    def state_dict(self) -> Tree:
        average = self.interval_average
        return {
            "model": self.model.state_dict(),
            "momentum": self._momentum(),
            "interval_average": average.state_dict() if average else None,
        }

    def load_state_dict(self, tree: Tree) -> None:
        """Copy a candidate's state into this one's tensors."""
        self.model.load_state_dict(tree["model"])
        for parameter, momentum in zip(self.model.parameters(), tree["momentum"], strict=True):
            if momentum is None:
                self.optimizer.state.pop(parameter, None)
            else:
                state = self.optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.empty_like(parameter)
                state["momentum_buffer"].copy_(momentum)
        self.interval_average = None
        if tree["interval_average"] is not None:
            self.interval_average = self.start_average()
            self.interval_average.load_state_dict(tree["interval_average"])

    def _momentum(self) -> list[Tensor | None]:
        """One buffer a parameter, None before the first step."""
        states = (self.optimizer.state.get(parameter, {}) for parameter in self.model.parameters())
        return [state.get("momentum_buffer") for state in states]


class Population:
    """P slots that start from the same weights."""

    def __init__(self, build: Callable[[], nn.Module], settings: OptimizerSettings, size: int) -> None:
        self.candidates = [Candidate(build(), settings) for _ in range(size)]

    def continue_from(self, winner: int) -> None:
        """Copy weights, buffers and momentum of the winner into every slot, and forget the interval's averages."""
        for candidate in self.candidates:
            candidate.epoch_average = candidate.interval_average = None
        tree = self.candidates[winner].state_dict()
        for slot, candidate in enumerate(self.candidates):
            if slot != winner:
                candidate.load_state_dict(tree)

    def state_dict(self, active: int) -> Tree:
        """The first `active` slots; the others are equal to slot 0 or not in use."""
        return {"candidates": [candidate.state_dict() for candidate in self.candidates[:active]]}

    def load_state_dict(self, tree: Tree) -> None:
        """Restore the saved slots, and the others as copies of slot 0."""
        saved = tree["candidates"]
        for slot, candidate in enumerate(self.candidates):
            candidate.load_state_dict(saved[slot] if slot < len(saved) else saved[0])
