"""Mixing of training images in pairs: mixup and CutMix.

A batch is in random order, so each image is mixed with the one before it (our choice; the papers draw a random
permutation). The mixture is a function of (seed, epoch, stream, step).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tfkd_fast.data.loaders.loader import Batch
from tfkd_fast.data.settings import DataSettings, MixName
from tfkd_fast.randomness import Purpose, random_words


class MixPartners(NamedTuple):
    """The partners that the images of a batch were mixed with."""

    labels: Tensor
    """(n,B) int64: labels of the partners."""
    share: Tensor
    """(n,) float32: the share of the image itself, 0..1; its partner has the rest."""


class Mixing:
    """The mixing of mixup (Zhang et al., ICLR 2018) or CutMix (Yun et al., ICCV 2019); shares are Beta-distributed."""

    def __init__(self, name: MixName, alpha: float, seed: int) -> None:
        self._name, self._alpha, self._seed = name, alpha, seed

    def plan(self, steps: int, epoch: int, stream: int) -> Tensor:
        """Draw the mixture of every step of an epoch.

        Returns:
            (steps,3) float32 on the CPU: the share of the image itself, and the row and column of the centre of
            CutMix's box as fractions of the image, 0..1.
        """
        from scipy.special import betaincinv  # half a second to import, and only runs that mix need it

        words = random_words(torch.arange(steps), Purpose.MIX, seed=self._seed, epoch=epoch, stream=stream)
        uniform = (torch.stack(words[:3], dim=1).double() + 0.5) / 2**32
        uniform[:, 0] = torch.from_numpy(betaincinv(self._alpha, self._alpha, uniform[:, 0].numpy()))
        return uniform.float()

    def mix(self, batch: Batch, plan: Tensor) -> tuple[Batch, MixPartners]:
        """Mix a batch whose tensors have a leading axis n, one for each candidate.

        Args:
            batch: images (n,B,C,H,W) and labels (n,B).
            plan: (n,3) on the device, one row of `plan` for each candidate.

        Returns:
            The batch with mixed images, and its partners.
        """
        images, others = batch.images, batch.images.roll(1, dims=1)
        share = plan[:, 0]
        if self._name == "mixup":
            weight = share.reshape(-1, 1, 1, 1, 1)
        else:
            weight = 1.0 - _box(plan, *images.shape[-2:]).reshape(len(plan), 1, 1, *images.shape[-2:])
            share = weight.mean(dim=(1, 2, 3, 4))
        mixture = torch.lerp(others, images, weight.to(images.dtype))
        return batch._replace(images=mixture), MixPartners(batch.labels.roll(1, dims=1), share)


def _box(plan: Tensor, height: int, width: int) -> Tensor:
    """Return (n,H,W) float32: 1 in a box of the share 1 - plan[:,0] of the image, cut off at the borders, else 0.

    Corners are rounded as in the code of CutMix: the centre and half of each side are whole pixels.
    """
    side = (1.0 - plan[:, 0]).sqrt()
    inside = []
    for size, centre in ((height, plan[:, 1]), (width, plan[:, 2])):
        middle, half = (centre * size).floor(), (side * size).floor().div(2, rounding_mode="floor")
        pixels = torch.arange(size, device=plan.device)
        inside.append((pixels >= (middle - half).unsqueeze(1)) & (pixels < (middle + half).unsqueeze(1)))
    return (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).float()


def make_mixing(settings: DataSettings, seed: int) -> Mixing | None:
    """Build the mixing that the `[data]` table names; None if images are not mixed."""
    return None if settings.mix == "none" else Mixing(settings.mix, settings.mix_alpha, seed)
