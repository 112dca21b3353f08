"""The gradient of an update, where several batches or several processes make it together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tfkd_fast.training.ranks import Ranks


@dataclass(eq=False)
class GradientSum:
    """The sum of the gradients of some tensors, of one dtype, over batches and processes. It keeps its place in memory,
    all of it in one tensor: processes sum it in one message."""

    flat: Tensor
    """(M,): all sums, one after the other."""
    sums: list[Tensor]
    """The sum of each tensor, a view, in the memory layout of the tensor."""
    used: set[int] = field(default_factory=set)
    """Numbers of the tensors that have a gradient in this update; before its first batch, in the one before it, as for
    an update of which other processes have all images."""
    begun: bool = False
    """Whether this update has a batch."""

    @classmethod
    def zeros(cls, leaves: Sequence[Tensor]) -> "GradientSum":
        """The sums of no batches; each leaf fills the memory that it spans."""
        flat = leaves[0].new_zeros(sum(leaf.numel() for leaf in leaves))
        pieces = flat.split([leaf.numel() for leaf in leaves])
        sums = [
            piece.as_strided(leaf.shape, leaf.stride(), piece.storage_offset())
            for piece, leaf in zip(pieces, leaves, strict=True)
        ]
        return cls(flat, sums)

    def add(self, gradients: Sequence[Tensor | None], share: float) -> None:
        """Add the gradients of a batch, times its share of the update; None for a tensor that took no part in it, as
        layers that are skipped at random."""
        present = {number: gradient for number, gradient in enumerate(gradients) if gradient is not None}
        torch._foreach_add_([self.sums[number] for number in present], list(present.values()), alpha=share)
        self.used = {*self.used, *present} if self.begun else {*present}
        self.begun = True

    def over(self, ranks: Ranks) -> list[Tensor | None]:
        """The sums over all batches and processes, or None for a tensor without gradient. Called once an update."""
        ranks.add(self.flat)
        return [total if number in self.used else None for number, total in enumerate(self.sums)]

    def restart(self) -> None:
        """Set all sums to zero, before the next update."""
        self.flat.zero_()
        self.begun = False
