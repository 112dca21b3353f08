"""Strong augmentation of batches on the device, as a function of (seed, epoch, stream, sample).

Source: Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020, the policy "color,
translation, cutout" with its ranges. It works on tensors of whole batches, so that every loader gives
the same images.
"""

import torch
from torch import Tensor

from tfkd_fast.randomness import Purpose, Words, bounded_integers, random_words

BRIGHTNESS = 0.25
"""Largest brightness that is added to, or taken from, all channels; 1 is the range from black to white."""
SATURATION = (0.0, 2.0)
"""Range of the factor of a pixel's distance from its grey value, the mean of its channels."""
CONTRAST = (0.5, 1.5)
"""Range of the factor of a pixel's distance from the mean of its image."""
TRANSLATION = 1 / 8
"""Largest translation along either side, as a share of the side."""
CUTOUT = 1 / 2
"""Sides of the square that is cut out, as a share of the image's sides."""


@torch.no_grad()
def augment_strongly(images: Tensor, indices: Tensor, draws: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Change brightness, saturation and contrast of images, translate them, and cut out a square, all at random.

    It is computed in float32 without clamping. Pixels that are moved in or cut out have the mean colour of the data
    set, 0 after standardisation (our choice; the source, whose images range from -1 to 1, has grey). The centre of the
    square is any pixel, and the square ends at the border.

    Args:
        images: (n,B,C,H,W), standardised by `mean` and `std`, of any floating-point dtype.
        indices: (n,B) int64, indices of the images in their set, below 2**31.
        draws: (n,3) int64: seed, epoch and stream, as for `ops.augment`.
        mean, std: (C,) float32, statistics of each channel, where 1 is the range from black to white.

    Returns:
        Images of the same shape and dtype, channels-last in memory.
    """
    n, batch, channels, height, width = images.shape
    seed, epoch, stream = draws.unsqueeze(-1).unbind(-2)
    places = {"seed": seed, "epoch": epoch, "stream": stream}
    colour = random_words(2 * indices, Purpose.STRONG, **places)
    place = random_words(2 * indices + 1, Purpose.STRONG, **places)
    pixels = images.movedim(2, -1).reshape(n * batch, height * width, channels).float()
    pixels = (_change_colours(pixels * std + mean, colour) - mean) / std
    source, mask = _translate_and_cut(place, height, width)
    pixels = pixels.take_along_dim(source.unsqueeze(-1), 1).masked_fill(~mask.unsqueeze(-1), 0.0)
    return pixels.to(images.dtype).view(n, batch, height, width, channels).movedim(-1, 2)


def _change_colours(pixels: Tensor, words: Words) -> Tensor:
    """Change brightness, saturation and contrast of pixels (M,H*W,C), 0..1, of M images."""
    brightness = _between(words[0], -BRIGHTNESS, BRIGHTNESS)
    saturation, contrast = _between(words[1], *SATURATION), _between(words[2], *CONTRAST)
    pixels = pixels + brightness
    pixels = torch.lerp(pixels.mean(2, keepdim=True), pixels, saturation)
    return torch.lerp(pixels.mean((1, 2), keepdim=True), pixels, contrast)


def _translate_and_cut(words: Words, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return, for each position of M images (M,H*W), the pixel that is shown there, int64, and whether one is, bool."""
    sources, inside, cut = [], [], []
    for side, shift, centre in ((height, words[0], words[2]), (width, words[1], words[3])):
        most, size = int(side * TRANSLATION + 0.5), int(side * CUTOUT + 0.5)
        place = torch.arange(side, device=shift.device)
        source = place + (bounded_integers(shift, 2 * most + 1) - most).reshape(-1, 1)
        first = (bounded_integers(centre, side + 1 - size % 2) - size // 2).reshape(-1, 1)
        inside.append((source >= 0) & (source < side))
        cut.append((place >= first) & (place < first + size))
        sources.append(source.clamp(0, side - 1))
    source = sources[0].unsqueeze(2) * width + sources[1].unsqueeze(1)
    mask = inside[0].unsqueeze(2) & inside[1].unsqueeze(1) & ~(cut[0].unsqueeze(2) & cut[1].unsqueeze(1))
    return source.flatten(1), mask.flatten(1)


def _between(word: Tensor, low: float, high: float) -> Tensor:
    """Map words (n,B) to uniform float32 numbers (M,1,1) between `low` and `high`."""
    return (low + (high - low) * (word.double() + 0.5) / 2**32).float().reshape(-1, 1, 1)
