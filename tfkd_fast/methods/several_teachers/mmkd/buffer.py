"""A buffer of images that the student misclassifies."""

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
        self._stored: Batch | None = None

    @property
    def full(self) -> bool:
        """Whether the buffer holds as many images as its capacity."""
        return self._filled == self._capacity

    def add(self, batch: Batch, wrong: Tensor, step: int) -> None:
        """Keep a batch, or once the buffer is full, those of its images that are `wrong` (B,) bool.

        Each image is given a random slot of its own, and a wrong one overwrites what is there. `step` numbers the call.
        """
        if self._stored is None:
            self._stored = Batch(*(tensor.new_empty(self._capacity, *tensor.shape[1:]) for tensor in batch))
        if not self.full:
            end = min(self._filled + len(wrong), self._capacity)
            for stored, new in zip(self._stored, batch, strict=True):
                stored[self._filled : end] = new[: end - self._filled]
            self._filled = end
            return
        slots = self._permutation(Purpose.HARD_SLOT, step, wrong.device)[: len(wrong)]
        for stored, new in zip(self._stored, batch, strict=True):
            chosen = wrong.view(-1, *[1] * (new.dim() - 1))
            stored.index_copy_(0, slots, torch.where(chosen, new, stored.index_select(0, slots)))

    def draw(self, count: int, step: int) -> Batch:
        """Draw so many different images at random.

        Raises:
            ValueError: for a buffer that is not full.
        """
        if self._stored is None or not self.full:
            raise ValueError("images are drawn from a full buffer: see HardBuffer.full")
        slots = self._permutation(Purpose.HARD_BATCH, step, self._stored.labels.device)[:count]
        return Batch(*(stored.index_select(0, slots) for stored in self._stored))

    def state_dict(self) -> dict[str, Any]:
        stored = [] if self._stored is None else [tensor.clone() for tensor in self._stored]
        return {"filled": self._filled, "kept": stored}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._filled = state["filled"]
        self._stored = Batch(*(tensor.to(device, copy=True) for tensor in state["kept"])) if state["kept"] else None

    def _permutation(self, purpose: Purpose, step: int, device: torch.device) -> Tensor:
        keys = random_keys(self._capacity, purpose, seed=self._seed, epoch=step, stream=0, device=device)
        return keys.argsort(stable=True)
