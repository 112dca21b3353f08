"""Random changes of training images beyond windows and mirroring, drawn and applied by torchvision image by image.

They follow each other as in the field's recipes: a part of the image brought to its size (RandomResizedCrop),
mirroring, RandAugment or TrivialAugment, colour jitter, and erasing. What is drawn for an image is a function of the
key of its view, because torch's generator is seeded with it: a resumed run shows the same images to the bit, whichever
process makes them. Images are Pillow's meanwhile, whose operations are several times faster than those of tensors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from tfkd_fast.data.settings import AutoAugmentName, DataSettings
from tfkd_fast.randomness import seeded

PROPORTIONS = (3 / 4, 4 / 3)
"""Range of the width of a resized crop over its height, as in torchvision and timm."""
ERASED_AREA = (0.02, 0.33)
"""Range of the area of an erased rectangle, as a share of the image's: Zhong et al., AAAI 2020."""
ERASED_PROPORTIONS = (0.3, 3.3)
"""Range of the height of an erased rectangle over its width, from the same source."""


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    """First row of the rectangle."""
    left: int
    """First column of the rectangle."""
    height: int
    """Number of its rows of pixels."""
    width: int
    """Number of its columns of pixels."""


UNCHANGED = (1.0, 1.0, 1.0, 0.0)
"""The values of `Jitter` that change nothing."""


class Jitter(NamedTuple):
    """Changes of colour, see `UNCHANGED`."""

    order: tuple[int, ...]
    """The order of the changes, as numbers of the fields below."""
    brightness: float
    """Factor of the brightness."""
    contrast: float
    """Factor of the distance from the mean grey level."""
    saturation: float
    """Factor of the distance from the grey image."""
    hue: float
    """Turns of the colour wheel."""


class Drawn(NamedTuple):
    """What is drawn for one image, apart from the operations of RandAugment and TrivialAugment."""

    part: Box | None
    """The part of the image that is shown; None for all that the window shows."""
    jitter: Jitter | None
    """The changes of colour; None for none."""
    erased: Box | None
    """The rectangle that is painted over; None for none."""


@dataclass(frozen=True)
class Transforms:
    """The parameters of the random changes, see `DataSettings` for their meaning."""

    area: tuple[float, float] | None
    """Range of the area of a resized crop; None where crops are windows of padded images."""
    auto_augment: AutoAugmentName
    """The random operations."""
    operations: int
    """Number of operations of RandAugment."""
    magnitude: int
    """Magnitude of the operations of RandAugment."""
    jitter: float
    """Largest change of brightness, contrast and saturation."""
    hue: float
    """Largest change of hue."""
    erasing: float
    """Probability of an erased rectangle."""
    fill: tuple[int, ...]
    """Grey level of each channel, 0..255, that an erased rectangle has."""

    def draw(self, key: int, height: int, width: int, size: int) -> Drawn:
        """Draw the changes of one image, as `apply` does.

        Args:
            key: the seed, from the image's view.
            height, width: of the whole image in pixels.
            size: pixels a side that the image is brought to.
        """
        with _generator(key):
            return self._draw(height, width, size)

    def apply(self, image: Image.Image, key: int, *, mirrored: bool, size: int) -> Image.Image:
        """Return an image with its changes.

        Args:
            image: the whole image for resized crops, a window of size x size pixels otherwise; RGB or grey.
            key: the seed, from the image's view.
            mirrored: whether it is mirrored left to right.
            size: pixels a side that the image is brought to.
        """
        with _generator(key):
            drawn = self._draw(image.height, image.width, size)
            if drawn.part is not None:
                image = resize_part(image, drawn.part, size)
            if mirrored:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if operate := self._operations():
                image = operate(image)
        if drawn.jitter is not None:
            image = _change_colours(image, drawn.jitter)
        if drawn.erased is not None:
            top, left, rows, columns = drawn.erased
            image = image.copy()
            image.paste(self.fill if len(self.fill) > 1 else self.fill[0], (left, top, left + columns, top + rows))
        return image

    def _draw(self, height: int, width: int, size: int) -> Drawn:
        from torchvision.transforms import ColorJitter, RandomErasing, RandomResizedCrop

        part, jitter, erased = None, None, None
        if self.area is not None:
            part = Box(*RandomResizedCrop.get_params(_shape(height, width), list(self.area), list(PROPORTIONS)))
        if self.jitter or self.hue:
            around = [1 - self.jitter, 1 + self.jitter] if self.jitter else None
            turns = [-self.hue, self.hue] if self.hue else None
            order, *changes = ColorJitter.get_params(around, around, around, turns)
            pairs = zip(changes, UNCHANGED, strict=True)
            jitter = Jitter(tuple(order.tolist()), *(none if change is None else change for change, none in pairs))
        if self.erasing and torch.rand(()).item() < self.erasing:
            box = Box(*RandomErasing.get_params(_shape(size, size), ERASED_AREA, ERASED_PROPORTIONS, [0.0])[:4])
            erased = box if box.height < size else None  # it gives the whole image where ten draws did not fit
        return Drawn(part, jitter, erased)

    def _operations(self) -> Callable[[Any], Any] | None:
        if self.auto_augment == "none":
            return None
        from torchvision.transforms.v2 import RandAugment, TrivialAugmentWide

        return (
            RandAugment(self.operations, self.magnitude) if self.auto_augment == "randaugment" else TrivialAugmentWide()
        )


def make_transforms(settings: DataSettings, mean: tuple[float, ...]) -> Transforms | None:
    """Return the random changes that a `[data]` table asks for; None for none.

    Args:
        settings: the table.
        mean: mean of each channel of the data set, 0..1: the colour of what is erased.
    """
    if not changes_at_random(settings):
        return None
    return Transforms(
        area=settings.crop_area if settings.crop == "resized" else None,
        auto_augment=settings.auto_augment,
        operations=settings.randaugment_operations,
        magnitude=settings.randaugment_magnitude,
        jitter=settings.jitter,
        hue=settings.hue_jitter,
        erasing=settings.erasing,
        fill=tuple(round(255 * value) for value in mean),
    )


def changes_at_random(settings: DataSettings) -> bool:
    """Return whether a `[data]` table asks for random changes beyond padded crops and mirroring."""
    asked = settings.crop == "resized" or settings.auto_augment != "none"
    return settings.augment and (asked or max(settings.jitter, settings.hue_jitter, settings.erasing) > 0)


def describe_augmentation(settings: DataSettings) -> str:
    """Return the random changes beyond padded crops and mirroring in words; empty for none."""
    if not changes_at_random(settings):
        return ""
    words = []
    if settings.crop == "resized":
        smallest, largest = (f"{100 * share:g}" for share in settings.crop_area)
        words.append(f"a part of {smallest} to {largest} % of the area, resized")
    if settings.auto_augment == "randaugment":
        count, magnitude = settings.randaugment_operations, settings.randaugment_magnitude
        words.append(f"RandAugment with {count} operation{'s' * (count > 1)} of magnitude {magnitude}")
    if settings.auto_augment == "trivialaugment":
        words.append("TrivialAugment")
    if settings.jitter:
        words.append(f"brightness, contrast and saturation changed by up to {100 * settings.jitter:g} %")
    if settings.hue_jitter:
        words.append(f"hue by up to {settings.hue_jitter:g} of a turn")
    if settings.erasing:
        words.append(f"a rectangle of {100 * settings.erasing:g} % of the images erased")
    return "; ".join(words)


def resize_part(image: Image.Image, part: Box, size: int) -> Image.Image:
    """Cut a part out of an image and resize it, antialiased and bilinear, to size x size pixels."""
    top, left, height, width = part
    return image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)


def _change_colours(image: Image.Image, jitter: Jitter) -> Image.Image:
    from torchvision.transforms.v2 import functional

    steps = (
        functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation, functional.adjust_hue,
    )  # fmt: skip
    for number in jitter.order:
        if jitter[1 + number] != UNCHANGED[number]:  # to change hue by nothing would round, too
            image = steps[number](image, jitter[1 + number])
    return image


def _shape(height: int, width: int) -> Tensor:
    """Return an image without pixels, for functions that ask for its shape only."""
    return torch.empty(1, device="meta").expand(3, height, width)


_generator_in_use = Lock()
"""Threads of a process share torch's generator."""


@contextmanager
def _generator(key: int) -> Iterator[None]:
    """Context manager for a block that alone draws from torch's generator, seeded with `key`."""
    with _generator_in_use, seeded(key):
        yield
