"""The images that the student gets wrong."""

from typing import Any

import torch
from torch import Tensor

from tfkd_fast.data import Batch
from tfkd_fast.randomness import Purpose, random_keys


class HardBuffer:
    """A buffer of augmented images on the device: first whole batches until it is full, then what is misclassified."""

    def __init__(self, capacity: int, seed: int) -> None:
        self._capacity, self._seed = capacity, seed
        self._filled = 0
        self._kept: Batch | None = None

    @property
    def full(self) -> bool:
        """Whether as many images are kept as fit."""
        return self._filled == self._capacity

    def add(self, batch: Batch, wrong: Tensor, step: int) -> None:
        """Keep a batch, or once the buffer is full, those of its images that are `wrong` (B,) bool.

        Each image is given a random slot of its own, and a wrong one overwrites what is there. `step` numbers the call.
        """
        if self._kept is None:
            self._kept = Batch(*(tensor.new_empty(self._capacity, *tensor.shape[1:]) for tensor in batch))
        if not self.full:
            end = min(self._filled + len(wrong), self._capacity)
            for kept, new in zip(self._kept, batch, strict=True):
                kept[self._filled : end] = new[: end - self._filled]
            self._filled = end
            return
        slots = self._shuffled(Purpose.HARD_SLOT, step, wrong.device)[: len(wrong)]
        for kept, new in zip(self._kept, batch, strict=True):
            chosen = wrong.view(-1, *[1] * (new.dim() - 1))
            kept.index_copy_(0, slots, torch.where(chosen, new, kept.index_select(0, slots)))

    def draw(self, count: int, step: int) -> Batch:
        """Draw so many different images at random.

        Raises:
            ValueError: for a buffer that is not full.
        """
        if self._kept is None or not self.full:
            raise ValueError("images are drawn from a full buffer: see HardBuffer.full")
        slots = self._shuffled(Purpose.HARD_BATCH, step, self._kept.labels.device)[:count]
        return Batch(*(kept.index_select(0, slots) for kept in self._kept))

    def state_dict(self) -> dict[str, Any]:
        kept = [] if self._kept is None else [tensor.clone() for tensor in self._kept]
        return {"filled": self._filled, "kept": kept}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._filled = state["filled"]
        self._kept = Batch(*(tensor.to(device, copy=True) for tensor in state["kept"])) if state["kept"] else None

    def _shuffled(self, purpose: Purpose, step: int, device: torch.device) -> Tensor:
        keys = random_keys(self._capacity, purpose, seed=self._seed, epoch=step, stream=0, device=device)
        return keys.argsort(stable=True)
