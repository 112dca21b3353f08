"""Layers of a method that train along with the student: their tensors, and those of the optimiser."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tfkd_fast.finiteness import named_tensors
from tfkd_fast.runs.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from tfkd_fast.training.optimizers import zero_state


class Adapters:
    """Weights and buffers of `Method.adapters`, if there are any, and what the optimiser remembers of the weights. They
    keep their place in memory."""

    def __init__(self, module: nn.Module | None, optimizer: OptimizerSettings = DEFAULT_OPTIMIZER) -> None:
        self.module = module
        self.weights = list(module.parameters()) if module else []
        states = [zero_state(optimizer, weight) for weight in self.weights]
        self.optimizer_state = {name: [state[name] for state in states] for name in (states[0] if states else ())}
        self.buffers = list(module.buffers()) if module else []

    def train(self) -> None:
        """Put the layers into training mode."""
        if self.module is not None:
            self.module.train()

    def forget_optimizer_state(self) -> None:
        """Set all that the optimiser remembers to zero."""
        for tensors in self.optimizer_state.values():
            for tensor in tensors:
                tensor.zero_()

    def beside(self, state: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """What the optimiser remembers of a student's weights, then of these layers."""
        return {name: [*tensors, *self.optimizer_state.get(name, ())] for name, tensors in state.items()}

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, as in "adapters.weights.0"."""
        return named_tensors({"adapters": self._tensors()})

    def state_dict(self) -> dict[str, Any]:
        return {name: [tensor.detach().clone() for tensor in tensors] for name, tensors in self._tensors().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensors in self._tensors().items():
            for tensor, saved in zip(tensors, state[name], strict=True):
                tensor.copy_(saved)

    def _tensors(self) -> dict[str, Sequence[Tensor]]:
        return {"weights": self.weights, **self.optimizer_state, "buffers": self.buffers}
