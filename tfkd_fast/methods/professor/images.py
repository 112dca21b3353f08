"""The images that a professor learns from: those that its teacher was not trained on, under strong augmentation.

On its own training images a teacher is hardly ever wrong, and there would be nothing to learn.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum

import torch
from torch import Tensor

from tfkd_fast.data import Batch
from tfkd_fast.methods.professor.settings import ProfessorSettings
from tfkd_fast.randomness import Purpose, Words, bounded_integers, random_words

EVALUATION_SHARE = 0.2
"""The share of the images that a professor is judged by and does not learn from (our choice)."""
VALIDATION_SHARE = 0.1
"""The share of the images that the epoch of a professor is chosen by (our choice)."""


class Draw(IntEnum):
    """The random streams of `Purpose.PROFESSOR`; the values are part of every result."""

    SPLIT = 0
    CUTOUT = 1
    JITTER = 2
    CODE = 3
    """The stream of the first teacher's codes; those of the other teachers follow."""


class ProfessorImages:
    """The images of `unseen`, which gives augmented batches of an epoch, in three parts."""

    def __init__(self, unseen: Callable[[int], Iterable[Batch]], settings: ProfessorSettings, seed: int) -> None:
        self._unseen, self._settings, self._seed = unseen, settings, seed

    def evaluation_batches(self) -> Iterator[Batch]:
        """The batches that a professor is judged by, augmented as the student will see them."""
        return self._part(0, 0.0, EVALUATION_SHARE)

    def validation_batches(self) -> Iterator[Batch]:
        """The batches that the epoch of a professor is chosen by, augmented as the student will see them."""
        return self._part(0, EVALUATION_SHARE, EVALUATION_SHARE + VALIDATION_SHARE)

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch that a professor learns from, under Cutout and colour jitter on top of the
        augmentation; of two images at least, for batch norm."""
        for batch in self._part(epoch, EVALUATION_SHARE + VALIDATION_SHARE, 1.0):
            if len(batch.labels) > 1:
                images = augment_for_professor(
                    batch.images, batch.indices, self._settings, seed=self._seed, epoch=epoch
                )
                yield batch._replace(images=images)

    def _part(self, epoch: int, start: float, end: float) -> Iterator[Batch]:
        """The images whose random number in 0 .. 1 is from `start` to `end`."""
        for batch in self._unseen(epoch):
            words = random_words(batch.indices, Purpose.PROFESSOR, seed=self._seed, stream=Draw.SPLIT)[0]
            rows = ((words >= start * 2**32) & (words < end * 2**32)).nonzero().squeeze(1)
            if len(rows):
                yield Batch(*(column[rows] for column in batch))


def augment_for_professor(
    images: Tensor, indices: Tensor, settings: ProfessorSettings, *, seed: int, epoch: int
) -> Tensor:
    """Change normalised images (B,C,H,W) by colour jitter, then Cutout; the result is a function of (seed, epoch,
    index).

    Jitter j: saturation and contrast by factors from 1-j to 1+j, around the grey of each pixel and the mean of each
    image, and a brightness of -j to j more. On normalised channels (our choice): a method does not know the others.
    Cutout (DeVries, Taylor, arXiv 1708.04552): a square around a random pixel, cut off at the border, is 0.
    """
    draw = {"seed": seed, "epoch": epoch}
    if settings.jitter:
        words = random_words(indices, Purpose.PROFESSOR, **draw, stream=Draw.JITTER)
        images = _jitter_colours(images, words, settings.jitter)
    size = settings.cutout * images.shape[-1] // 32
    if size:
        words = random_words(indices, Purpose.PROFESSOR, **draw, stream=Draw.CUTOUT)
        images = _cut_out(images, words, size)
    return images


def _jitter_colours(images: Tensor, words: Words, jitter: float) -> Tensor:
    saturation, contrast, brightness = (
        (jitter * (word.double() / 2**31 - 1.0)).to(images.dtype).view(-1, 1, 1, 1) for word in words[:3]
    )
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (1.0 + saturation) * (images - grey)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (1.0 + contrast) * (images - mean) + brightness


def _cut_out(images: Tensor, words: Words, size: int) -> Tensor:
    inside = []
    for word, extent in zip(words[:2], images.shape[2:], strict=True):
        first = bounded_integers(word, extent) - size // 2
        place = torch.arange(extent, device=images.device) - first.unsqueeze(1)  # (B,extent)
        inside.append((place >= 0) & (place < size))
    rows, columns = inside
    return images.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)
