"""What the student predicted for each training sample when it last saw it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class InstanceMemory:
    """Logits (P,N,C) float16 of P candidates for N training samples, zero before the first visit.

    Kim et al. (ICCV 2021, PS-KD) keep the probabilities; logits can be softened at any temperature. The tensor keeps
    its place: a captured step may hold it.
    """

    def __init__(self, candidates: int, num_images: int, num_classes: int, device: torch.device) -> None:
        self.logits = torch.zeros(candidates, num_images, num_classes, dtype=torch.float16, device=device)

    def exchange(self, candidates: slice, indices: Tensor, logits: Tensor) -> Tensor:
        """Remember logits (n,B,C) for samples `indices` (n,B), and return those remembered before, in the same shape.

        The samples of one candidate must be different ones. No gradient flows. Logits beyond the range of float16 are
        clipped to it.
        """
        limit = torch.finfo(torch.float16).max
        own, rows = self.logits[candidates], indices.unsqueeze(-1).expand_as(logits)
        before = own.gather(1, rows)
        own.scatter_(1, rows, logits.detach().clamp(-limit, limit).to(torch.float16))
        return before

    def continue_from(self, parents: Sequence[int]) -> None:
        """Candidate s goes on with what `parents[s]` remembers."""
        self.logits.copy_(self.logits[list(parents)])

    def state_dict(self, active: int) -> dict[str, Any]:
        return {"logits": self.logits[:active].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = state["logits"]
        self.logits.copy_(saved[torch.arange(len(self.logits)) % len(saved)])
