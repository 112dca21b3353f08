"""Instance memory: the latest predictions of the student for each training sample."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SHARED_AT_ONCE = 8192
"""Samples whose predictions are averaged at a time."""


class InstanceMemory:
    """Logits (P,N,C) float16 of P candidates for N training samples, zero before the first visit.

    Kim et al. (ICCV 2021, PS-KD) keep probabilities; logits can be softened at any temperature. The tensor keeps its
    place in memory, because a captured CUDA graph may hold its address.
    """

    def __init__(self, candidates: int, num_images: int, num_classes: int, device: torch.device) -> None:
        self.logits = torch.zeros(candidates, num_images, num_classes, dtype=torch.float16, device=device)

    def exchange(self, candidates: slice, indices: Tensor, logits: Tensor) -> Tensor:
        """Store the logits of a batch and return those stored before.

        Logits beyond the range of float16 are clipped to it. No gradient.

        Args:
            candidates: the n candidates.
            indices: (n,B) int64, the samples of each candidate; those of one candidate must be distinct.
            logits: (n,B,C) floating point.

        Returns:
            (n,B,C) float16.
        """
        limit = torch.finfo(torch.float16).max
        own, rows = self.logits[candidates], indices.unsqueeze(-1).expand_as(logits)
        before = own.gather(1, rows)
        own.scatter_(1, rows, logits.detach().clamp(-limit, limit).to(torch.float16))
        return before

    def share(self, candidates: Sequence[int]) -> None:
        """Give some candidates the logarithm of the mean of their probabilities, softmax(logits).

        It is computed in float32, sample by sample, so that no copy of the whole memory is made.
        """
        for start in range(0, self.logits.shape[1], SHARED_AT_ONCE):
            part = self.logits[list(candidates), start : start + SHARED_AT_ONCE].float()
            mean = part.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(candidates))
            self.logits[list(candidates), start : start + SHARED_AT_ONCE] = mean.to(self.logits.dtype)

    def continue_from(self, parents: Sequence[int]) -> None:
        """Give each candidate s the memory of candidate `parents[s]`."""
        self.logits.copy_(self.logits[list(parents)])

    def state_dict(self, active: int) -> dict[str, Any]:
        """Return the memory of the first `active` candidates."""
        return {"logits": self.logits[:active].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = state["logits"]
        self.logits.copy_(saved[torch.arange(len(self.logits)) % len(saved)])
