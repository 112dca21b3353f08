"""Sets of labelled images, in memory or in files."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
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
    """Image files, decoded on access to RGB of `size` x `size` pixels.

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
        try:
            with Image.open(file) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
            raise UserError(f"cannot read the image {file} ({reason}): replace it or delete it") from None
        square = ImageOps.fit(upright, (self._size, self._size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    def all_images(self) -> Tensor:
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
            return torch.stack(list(pool.map(self.image, range(len(self)))))

    def subset(self, indices: Tensor) -> Self:
        return type(self)([self.files[index] for index in indices.tolist()], self.labels[indices], self._size)

    def _digest(self, update: Callable[[Any], None]) -> None:
        for file in self.files:
            update(f"{file.name} {file.stat().st_size}\n".encode())
