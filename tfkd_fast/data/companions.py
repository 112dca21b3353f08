"""Companions: the image that is shown beside each image of a batch."""

from typing import Literal

import torch
from torch import Tensor

from tfkd_fast.randomness import Purpose, random_words

Companions = Literal["same-class", "previous", "weak", "strong"]
"""Kinds of companions:

* same-class: another image of the same class, a different one in every epoch (Yun et al., CVPR 2020, CS-KD);
* previous: the image at the same position of the previous step, with a new augmentation (Shen et al., CVPR 2022, DLB);
* weak: the same image with another crop and mirroring; without `data.augment`, the image itself;
* strong: the weak companion with the augmentation of `strong.augment_strongly` on top of it.
"""

COMPANION_STREAM = 2**31
"""Offset of the random stream of companions, so that their augmentation differs from that of the batch's images."""


def companion_order(
    kind: Companions, order: Tensor, labels: Tensor, batch_size: int, *, seed: int, epoch: int, stream: int
) -> Tensor:
    """Return the indices (M,) int64 of the companions of an epoch's images.

    For the kind "previous", the companions of the first step are the images of the last step of the same epoch.

    Args:
        kind: the kind of companions.
        order: (M,) int64, the images in the order of the epoch.
        labels: (N,) int64 on the device of `order`, labels of all images.
        batch_size: images of a step.
        seed, epoch, stream: the key of random numbers, see `randomness.random_words`.
    """
    if kind == "previous":
        return order.roll(batch_size)
    if kind in ("weak", "strong"):
        return order
    visited = order.sort().values
    by_class = visited[labels[visited].argsort(stable=True)]
    counts = labels[visited].bincount(minlength=int(labels.max()) + 1)
    starts = counts.cumsum(0) - counts
    own, first = counts[labels[order]], starts[labels[order]]
    place = torch.empty_like(labels)
    place[by_class] = torch.arange(len(by_class), device=labels.device) - starts[labels[by_class]]
    words = random_words(order, Purpose.COMPANION, seed=seed, epoch=epoch, stream=stream)[0]
    ahead = 1 + (words * (own - 1) >> 32)  # uniform on 1 .. own - 1; an image alone in its class is its own companion
    return by_class[first + (place[order] + ahead) % own]
