"""Sets of labelled images, in memory or in files."""

import hashlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tfkd_fast.errors import UserError


class ImageSet(ABC):
    """N images of one shape with labels (N,) int64."""

    labels: Tensor
    """(N,) int64: class indices."""
    image_shape: tuple[int, int, int]
    """Channels, height and width of every image."""
    places: Tensor | None = None
    """(N,) int64: ascending indices in the set of all classes, if this set holds only some classes; else None."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """Return one image (C,H,W) uint8."""

    @abstractmethod
    def all_images(self) -> Tensor:
        """Return all images (N,C,H,W) uint8. The tensor may share memory with the set: do not write to it."""

    @abstractmethod
    def subset(self, indices: Tensor) -> Self:
        """Return the set of the images at `indices` (M,) int64, in that order."""

    def fingerprint(self) -> str:
        """Return the SHA-256, in hexadecimal, of labels, shape and pixels (of files: names and sizes)."""
        digest = hashlib.sha256(repr((self.image_shape, self.labels.tolist())).encode())
        self._digest(digest.update)
        return digest.hexdigest()

    @abstractmethod
    def _digest(self, update: Callable[[Any], None]) -> None:
        """Pass the content of the images, as bytes, to `update` of a digest."""


class ArrayImages(ImageSet):
    """Images (N,C,H,W) uint8 in memory."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(f"images must be (N,C,H,W) uint8, got {tuple(images.shape)} {images.dtype}")
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(f"labels must be ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}")
        self.labels = labels
        self.image_shape = (images.shape[1], images.shape[2], images.shape[3])
        self._images = images

    def image(self, index: int) -> Tensor:
        return self._images[index]

    def all_images(self) -> Tensor:
        return self._images

    def subset(self, indices: Tensor) -> Self:
        return type(self)(self._images[indices], self.labels[indices])

    def _digest(self, update: Callable[[Any], None]) -> None:
        update(self._images.contiguous().numpy())


class FileImages(ImageSet):
    """Image files, decoded on access by `read_rgb` to RGB of `size` x `size` pixels.

    The largest centred square is resized with antialiased bilinear interpolation (our choice): shapes keep their
    proportions, and an image of the right size keeps its pixels.
    """

    def __init__(self, files: Sequence[Path], labels: Tensor, size: int) -> None:
        if labels.shape != (len(files),) or labels.dtype != torch.int64:
            raise ValueError(f"labels must be ({len(files)},) int64, got {tuple(labels.shape)} {labels.dtype}")
        self.labels = labels
        self.image_shape = (3, size, size)
        self.files = files
        self._size = size

    def image(self, index: int) -> Tensor:
        """Decode one image (C,H,W) uint8.

        Raises:
            UserError: the file cannot be decoded; the message names it.
        """
        file = self.files[index]
        square = ImageOps.fit(read_rgb(file), (self._size, self._size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    def all_images(self) -> Tensor:
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
            return torch.stack(list(pool.map(self.image, range(len(self)))))

    def subset(self, indices: Tensor) -> Self:
        return type(self)([self.files[index] for index in indices.tolist()], self.labels[indices], self._size)

    @cached_property
    def peculiar(self) -> str | None:
        """The first file that other decoders show differently, with the reason; None if there is none.

        The header of every file is read, which takes about 0.1 ms each.
        """
        with ThreadPoolExecutor() as pool:
            reasons = pool.map(_peculiarity, self.files)
            return next((f"{file}, {why}" for file, why in zip(self.files, reasons, strict=True) if why), None)

    def _digest(self, update: Callable[[Any], None]) -> None:
        for file in self.files:
            update(f"{file.name} {file.stat().st_size}\n".encode())


READING = (
    "the largest centred square, upright, resized to {size} x {size}; 8-bit RGB: 16 bits divided by 257, "
    "transparent pixels on white, other colours as Pillow converts them"
)
"""What happens to the pixels of an image file, in words, with the place of the size."""

FAULTS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for damaged files."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Value of the EXIF tag Orientation -> what turns the image upright."""


def read_rgb(file: Path) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    A grey level v of 16 bits becomes v/257, rounded; of colours with 16 bits Pillow keeps the upper 8. Transparent
    pixels are composed on white (our choice). Of EXIF data only the orientation is read; where it cannot be, the image
    stays as it is.

    Raises:
        UserError: the file cannot be decoded, or holds floats or integers of 32 bits, which have no white; the message
            names it.
    """
    try:
        with Image.open(file) as opened:
            opened.load()  # a TIFF file is turned here
            if opened.mode == "F" or (opened.mode == "I" and opened.format != "PPM"):
                kind = "floats" if opened.mode == "F" else "integers of 32 bits"
                raise UserError(f"the image {file} holds {kind}, which have no white: save it with 8 or 16 bits")
            image, turn = _to_rgb(opened), UPRIGHT.get(_orientation(opened))
            return image if turn is None else image.transpose(turn)
    except FAULTS as error:
        reason = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"cannot read the image {file} ({reason}): replace it or delete it") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow clips its 16 bits; those of a PGM file it keeps in 32
        levels = np.asarray(image).astype(np.int64)
        grey = ((levels + 128) // 257).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[levels == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF tag Orientation, 1..8; 1, which is upright, where it is missing or damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except FAULTS:
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1


def _peculiarity(file: Path) -> str | None:
    """Return what lets another decoder show a file differently; None also for a file that cannot be read at all."""
    try:
        with Image.open(file) as opened:
            if opened.mode not in ("1", "L", "P", "RGB"):
                return f"which has the mode {opened.mode}"
            if opened.has_transparency_data:
                return "which has transparent pixels"
            for decoder, _, _, form in opened.tile:
                if (opened.format in ("PNG", "TIFF") and ";16" in str(form)) or decoder.startswith("ppm"):
                    return "which has not 8 bits"
            return "which is turned by EXIF data" if _orientation(opened) != 1 else None
    except FAULTS:
        return None
