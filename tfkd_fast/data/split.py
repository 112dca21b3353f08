"""Class-balanced splits, which are a function of labels or of names, and of a seed."""

import hashlib
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from tfkd_fast.data.images import ImageSet
from tfkd_fast.data.settings import DataSettings
from tfkd_fast.errors import UserError
from tfkd_fast.randomness import Purpose, random_keys

SPLIT_SEED = 0
"""Seed of every split, whatever the seed of a run: all runs on a data set hold out the same images, so that runs of
different seeds can be compared."""


def split_holdout(images: ImageSet, fraction: float, fold: int = 0) -> tuple[ImageSet, ImageSet]:
    """Split a set into training images and held-out images, both in their original order.

    What a data set holds out by itself, `ImageSet.held_out`, is what is held out, whatever the share. Otherwise each
    class of n images holds out round(fraction * n) of them, at least one. A subset of the classes holds out the same
    images of these classes as the whole set does.

    Args:
        images: the set.
        fraction: share that is held out, above 0 and below 1.
        fold: which part of this share, counted from 0. Those of one share have no image in common; the first one of a
            smaller share is a subset of the first one of a larger.

    Returns:
        The training images and the held-out images.

    Raises:
        UserError: a class would have no image left to train on, or what the data set holds out has no folds, or no
            image.
        ValueError: the fraction is out of range.
    """
    fit, holdout = holdout_indices(images, fraction, fold)
    return images.subset(fit), images.subset(holdout)


def holdout_indices(images: ImageSet, fraction: float, fold: int = 0) -> tuple[Tensor, Tensor]:
    """Return the indices, ascending int64, of training images and of held-out images, see `split_holdout`."""
    if images.held_out is None:
        return split_indices(images.labels, fraction, SPLIT_SEED, images.places, fold)
    if fold:
        raise UserError("this data set says itself what is held out, which has no folds: leave data.fold out")
    if not images.held_out.any():
        raise UserError(
            "no image that this data set holds out shows a class of data.classes: add some, choose other classes, or "
            "set data.holdout to 0 to hold out none"
        )
    return (~images.held_out).nonzero().squeeze(1), images.held_out.nonzero().squeeze(1)


def describe_held_out(part: str, share: float) -> str:
    """Return what becomes of a part of a data set that is there to be held out, in words.

    Args:
        part: what the part is called.
        share: `data.holdout`; a part that is held out takes its place unless it is 0.

    Raises:
        UserError: another share than the default is asked for.
    """
    if not share:
        return f"the images of {part} are trained on, too, because data.holdout is 0"
    if share != DataSettings.model_fields["holdout"].default:
        raise UserError(
            f"data.holdout is {share:g}, but what is held out are the images of {part}: leave it out, or set it to 0 "
            "to train on them, too"
        )
    return f"the images of {part} are what is held out"


def split_indices(
    labels: Tensor, fraction: float, seed: int = SPLIT_SEED, places: Tensor | None = None, fold: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the indices of the remaining samples and of the chosen share; the rules are those of `split_holdout`.

    Args:
        labels: (N,) int64.
        fraction: share that is chosen of each class, above 0 and below 1.
        seed: seed of the split.
        places: (N,) int64, ascending indices of the samples in the set that they come from; by default 0 .. N-1.
        fold: which part of this share is chosen, counted from 0.

    Returns:
        Two ascending int64 tensors on the device of the labels.

    Raises:
        UserError: all samples of a class would be chosen.
        ValueError: the fraction is out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be above 0 and below 1, got {fraction}")
    count = len(labels) if places is None else int(places[-1]) + 1
    keys = random_keys(count, Purpose.SPLIT, seed=seed, epoch=0, stream=0, device=labels.device)
    keys = keys if places is None else keys[places]
    chosen = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        start, end = (round(number * fraction * len(members)) for number in (fold, fold + 1))
        start, end = min(start, len(members) - 1), max(start + 1, end)
        if end - start >= len(members):
            raise UserError(
                f"class number {label} has too few training images ({len(members)}) to hold out a share of "
                f"{fraction:g} and fit on the rest: add images or lower data.holdout (0 holds out none)"
            )
        chosen[members[keys[members].argsort(stable=True)[start:end]]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


def split_names(names: Sequence[str], fraction: float, seed: int = SPLIT_SEED) -> list[bool]:
    """Choose a share of the files of one class by their names alone.

    Whatever else is in the class, a file has the same place in the order that files are chosen by (our choice): where
    files are added, those that were chosen before mostly are again. Names that differ in the composition of accents
    only, as file systems do, count as the same. Of files of one name, as in archives of one name, the first is chosen
    first.

    Args:
        names: the names of two files or more, each with its class.
        fraction: share that is chosen, above 0 and below 1: round(fraction * n) of n files, at least one, and not all.
        seed: seed of the split.

    Returns:
        For each name, whether it is chosen.
    """

    def place(name: str) -> bytes:
        text = f"{seed} {unicodedata.normalize('NFC', name)}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).digest()

    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    chosen = set(sorted(range(len(names)), key=lambda number: place(names[number]))[:count])
    return [number in chosen for number in range(len(names))]
