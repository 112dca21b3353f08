"""Class similarities: an exponential moving average of the student's mean softmax under each label."""

from collections.abc import Sequence
from typing import Any

import torch


class SimilarityMemory:
    """Class similarities of P candidates, as in online label smoothing (Zhang et al., TIP 2021) but over all samples.

    Row y of `similarity` (P,C,C) float32 is the mean softmax of the samples of label y, averaged exponentially over
    epochs, uniform at first. During an epoch the loss adds each softmax to row y of `accumulator` (P,C,C) float32, so
    that a row's sum is its number of samples. Both tensors keep their place in memory, because a captured CUDA graph
    may hold their addresses.
    """

    def __init__(self, candidates: int, num_classes: int, decay: float, device: torch.device) -> None:
        shape = (candidates, num_classes, num_classes)
        self._decay = decay
        self.similarity = torch.full(shape, 1.0 / num_classes, device=device)
        self.accumulator = torch.zeros(shape, device=device)

    def end_epoch(self) -> None:
        """Average in the mean softmax of the epoch and zero the accumulator; a row without samples does not change."""
        counts = self.accumulator.sum(dim=-1, keepdim=True)
        blended = self._decay * self.similarity + (1.0 - self._decay) * self.accumulator / counts
        self.similarity.copy_(torch.where(counts > 0, blended, self.similarity))
        self.accumulator.zero_()

    def continue_from(self, parents: Sequence[int]) -> None:
        """Give each candidate s the similarities of candidate `parents[s]`."""
        self.similarity.copy_(self.similarity[list(parents)])

    def state_dict(self) -> dict[str, Any]:
        return {"similarity": self.similarity.clone(), "accumulator": self.accumulator.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.similarity.copy_(state["similarity"])
        if "accumulator" in state:
            self.accumulator.copy_(state["accumulator"])
        else:  # of an earlier version, which saved between epochs only
            self.accumulator.zero_()
