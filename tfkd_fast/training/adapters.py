"""Layers of a method that train along with the student: their tensors, and those of the optimiser."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tfkd_fast.finiteness import named_tensors


class Adapters:
    """Weights, momenta and buffers of `Method.adapters`, if there are any. They keep their place in memory."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module
        self.weights = list(module.parameters()) if module else []
        self.momenta = [torch.zeros_like(weight) for weight in self.weights]
        self.buffers = list(module.buffers()) if module else []

    def train(self) -> None:
        """Put the layers into training mode."""
        if self.module is not None:
            self.module.train()

    def forget_momenta(self) -> None:
        """Set all momenta to zero."""
        for momentum in self.momenta:
            momentum.zero_()

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
        return {"weights": self.weights, "momenta": self.momenta, "buffers": self.buffers}
