"""Which image is shown beside each image of a batch."""

from typing import Literal

import torch
from torch import Tensor

from tfkd_fast.randomness import Purpose, random_words

Companions = Literal["same-class", "previous", "weak", "strong"]
"""Which image is shown beside an image:

* same-class: another image of the same class, another one in every epoch (Yun et al., CVPR 2020, CS-KD);
* previous: the image of the same place in the step before, augmented anew (Shen et al., CVPR 2022, DLB);
* weak: the same image with another crop and mirroring; without `data.augment` that is the image as it is;
* strong: the same, and on top of it `strong.strengthened`.
"""

COMPANION_STREAM = 2**31
"""Added to the random stream of a candidate: companions are augmented differently than the images of the batch."""


def companion_order(
    kind: Companions, order: Tensor, labels: Tensor, batch_size: int, *, seed: int, epoch: int, stream: int
) -> Tensor:
    """Indices (M,) of the companions of the images that an epoch visits in `order` (M,), labels (N,), all on a device.

    In the first step of an epoch "previous" gives images of the last one, which in general the step before did not see.
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
