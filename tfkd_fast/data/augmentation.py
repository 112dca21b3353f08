"""Augmentation by random crops and mirroring, as a function of (seed, epoch, stream, sample).

The standard one is that of RepDistiller (Tian et al., 2020): a random 32x32 window of a 32x32 image with 4 black pixels
on each side, mirrored left to right half of the time. The border grows with the image, to 8 pixels at 64x64 (our
choice). What else is changed at random is drawn image by image, see `tfkd_fast.data.transforms`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tfkd_fast.data.transforms import Transforms
from tfkd_fast.ops.augment import random_windows
from tfkd_fast.randomness import Purpose, random_words

PLAIN = -1
"""The key of a view without random changes."""


class Views(NamedTuple):
    """Windows of M padded images as four columns."""

    indices: Tensor
    """(M,) int64: index of the image in its set."""
    top: Tensor
    """(M,) int64: first row of the window."""
    left: Tensor
    """(M,) int64: first column of the window."""
    mirrored: Tensor
    """(M,) bool: whether the window is mirrored left to right."""
    keys: Tensor
    """(M,) int64: the seed of what `Transforms` draw for the image; `PLAIN` for an image without random changes."""

    def batches(self, size: int) -> list["Views"]:
        """Split the views into consecutive batches of `size`; the last one may be smaller."""
        return list(map(Views, *(column.split(size) for column in self)))


@dataclass(frozen=True)
class Augmentation:
    """The parameters of the augmentation. Pad 0 without flip and transforms changes nothing."""

    pad: int
    """Number of black pixels on each side of an image."""
    flip: bool
    """Whether half of the images are mirrored."""
    transforms: Transforms | None = None
    """What is changed at random beyond that; None for nothing."""

    @classmethod
    def standard(cls, height: int, flip: bool) -> "Augmentation":
        """Return the standard augmentation of images of this height in pixels."""
        return cls(pad=4 * height // 32, flip=flip)

    def draw_views(self, indices: Tensor, *, seed: int, epoch: int, stream: int) -> Views:
        """Draw one view of each image at `indices` (M,) int64; see `randomness.random_words` for the key."""
        name = {"seed": seed, "epoch": epoch, "stream": stream}
        windows = random_windows(indices, pad=self.pad, flip=self.flip, **name)
        if self.transforms is None:
            return Views(indices, *windows, torch.full_like(indices, PLAIN))
        high, low, _, _ = random_words(indices, Purpose.TRANSFORMS, **name)
        return Views(indices, *windows, high << 31 | low >> 1)

    def plain_views(self, indices: Tensor) -> Views:
        """Return the view of each image at `indices` (M,) int64 that shows it without augmentation."""
        offset = torch.full_like(indices, self.pad)
        unchanged = torch.full_like(indices, PLAIN)
        return Views(indices, offset, offset, torch.zeros_like(indices, dtype=torch.bool), unchanged)
