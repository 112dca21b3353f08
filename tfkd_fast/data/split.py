"""Class-balanced splits that depend on labels and a seed, and on nothing else."""

import torch
from torch import Tensor

from tfkd_fast.data.images import ImageSet
from tfkd_fast.errors import UserError
from tfkd_fast.randomness import Purpose, random_keys

SPLIT_SEED = 0
"""Not the seed of a run: all runs on a data set hold out the same images, so that their seeds can be compared."""


def split_holdout(images: ImageSet, fraction: float, seed: int = SPLIT_SEED) -> tuple[ImageSet, ImageSet]:
    """The images to fit and the held-out images, both in their original order; 0 < fraction < 1.

    Of every class with n images round(fraction * n) are held out, at least one. A class that would be left with none to
    fit raises UserError. Of images that were chosen by class those are held out that are held out of all images.
    """
    fit, holdout = split_indices(images.labels, fraction, seed, images.places)
    return images.subset(fit), images.subset(holdout)


def split_indices(
    labels: Tensor, fraction: float, seed: int = SPLIT_SEED, places: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Ascending indices of the rest and of the chosen share, from labels (N,) int64. Rules as in `split_holdout`.

    `places` (N,) int64, ascending: the samples' numbers in the set that they were chosen from; by default 0 .. N-1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be above 0 and below 1, got {fraction}")
    count = len(labels) if places is None else int(places[-1]) + 1
    keys = random_keys(count, Purpose.SPLIT, seed=seed, epoch=0, stream=0, device=labels.device)
    keys = keys if places is None else keys[places]
    chosen = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        count = max(1, round(fraction * len(members)))
        if count == len(members):
            raise UserError(
                f"class number {label} has too few training images ({len(members)}) to hold out a share of "
                f"{fraction:g} and fit on the rest: add images or lower data.holdout (0 holds out none)"
            )
        chosen[members[keys[members].argsort(stable=True)[:count]]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)
