"""Random crops and mirroring, as a function of (seed, epoch, stream, sample).

The recipe of RepDistiller (Tian et al., 2020): 4 black pixels around a 32x32 image, a random 32x32 window of that,
mirrored left to right half of the time. The border grows with the image, to 8 pixels at 64x64 (our choice).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tfkd_fast.ops.augment import random_windows


class Views(NamedTuple):
    """Which window of which padded image to show: four columns (M,), one row an image."""

    indices: Tensor  # int64, of the image in its set
    top: Tensor  # int64, first row of the window
    left: Tensor  # int64, first column of the window
    mirrored: Tensor  # bool

    def batches(self, size: int) -> list["Views"]:
        """Consecutive views, `size` at a time; the last may be fewer."""
        return list(map(Views, *(column.split(size) for column in self)))


@dataclass(frozen=True)
class Augmentation:
    """What may happen to an image. Pad 0 without flip changes nothing."""

    pad: int  # pixels on each side
    flip: bool

    @classmethod
    def usual(cls, height: int, flip: bool) -> "Augmentation":
        return cls(pad=4 * height // 32, flip=flip)

    def views_of(self, indices: Tensor, *, seed: int, epoch: int, stream: int) -> Views:
        """One view of each image at `indices` (M,)."""
        return Views(
            indices, *random_windows(indices, pad=self.pad, flip=self.flip, seed=seed, epoch=epoch, stream=stream)
        )

    def plain_views(self, indices: Tensor) -> Views:
        """Each image at `indices` (M,) as it is."""
        offset = torch.full_like(indices, self.pad)
        return Views(indices, offset, offset, torch.zeros_like(indices, dtype=torch.bool))
