"""Sets of labelled images, in memory or in files."""

import hashlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, BinaryIO, ClassVar, NamedTuple, Self

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from tfkd_fast.data.members import AnyFile, open_file
from tfkd_fast.errors import UserError
from tfkd_fast.files import reading


class ImageSet(ABC):
    """N images of one shape with labels (N,) int64."""

    labels: Tensor
    """(N,) int64: class indices."""
    image_shape: tuple[int, int, int]
    """Channels, height and width of every image."""
    hashing: ClassVar[str] = ""
    """What a fingerprint begins with, which says how it is made; those that begin otherwise cannot be compared."""
    places: Tensor | None = None
    """(N,) int64: ascending indices in the set of all classes, if this set holds only some classes; else None."""
    held_out: Tensor | None = None
    """(N,) bool: the images that are held out whatever the share, if the data set itself has such; else None."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """Return one image (C,H,W) uint8."""

    @abstractmethod
    def whole(self, index: int) -> Image.Image:
        """Return one image as it is before it is brought to the shape of the set, in RGB or grey."""

    @abstractmethod
    def all_images(self) -> Tensor:
        """Return all images (N,C,H,W) uint8. The tensor may share memory with the set: do not write to it."""

    @abstractmethod
    def subset(self, indices: Tensor) -> Self:
        """Return the set of the images at `indices` (M,) int64, in that order."""

    @abstractmethod
    def refuse_unreadable(self) -> None:
        """Raise UserError for an image that cannot be decoded."""

    def fingerprint(self) -> str:
        """Return the SHA-256, in hexadecimal, of labels, shape and content of the images, and of which are held out; no
        file is decoded."""
        digest = hashlib.sha256(repr((self.image_shape, self.labels.tolist())).encode())
        if self.held_out is not None:
            digest.update(bytes(self.held_out.tolist()))
        self._digest(digest.update)
        return self.hashing + digest.hexdigest()

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

    def whole(self, index: int) -> Image.Image:
        return to_pillow(self._images[index])

    def all_images(self) -> Tensor:
        return self._images

    def subset(self, indices: Tensor) -> Self:
        return type(self)(self._images[indices], self.labels[indices])

    def refuse_unreadable(self) -> None:
        """Do nothing: what is in memory was decoded."""

    def _digest(self, update: Callable[[Any], None]) -> None:
        update(self._images.contiguous().numpy())


def to_pillow(pixels: Tensor) -> Image.Image:
    """Return an image (C,H,W) uint8, with one channel or three, as Pillow's."""
    return Image.fromarray((pixels.permute(1, 2, 0) if len(pixels) > 1 else pixels[0]).numpy())


def from_pillow(image: Image.Image) -> Tensor:
    """Return an RGB or grey image as a tensor (C,H,W) uint8."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def show_centre(image: Image.Image, size: int, share: float) -> Image.Image:
    """Cut a centred square out of an image and resize it, antialiased and bilinear, to size x size pixels.

    With a share of 224/256 that is what Resize(256) and CenterCrop(224) of torchvision show, without their rounding to
    whole pixels.

    Args:
        image: the image.
        size: pixels a side that the square is brought to.
        share: side of the square over the shorter side of the image.
    """
    side = share * min(image.size)
    left, top = (image.width - side) * 0.5, (image.height - side) * 0.5
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


REMEDY = "replace it or delete it"
FILES_AT_ONCE = 64
"""Number of files that a thread hashes at a time (our choice): a small file takes less than a change of threads."""


class FileImages(ImageSet):
    """Image files, decoded on access by `read_rgb` to RGB of `size` x `size` pixels, see `show_centre`.

    With the largest centred square shapes keep their proportions, and an image of the right size keeps its pixels (our
    choice).
    """

    hashing = "files:"  # earlier versions hashed names and sizes only, and wrote nothing before that

    def __init__(self, files: Sequence[AnyFile], labels: Tensor, size: int, share: float = 1.0) -> None:
        """Describe image files, which are opened when they are read.

        Args:
            files: the N files.
            labels: (N,) int64.
            size: pixels a side that images are brought to.
            share: side of the centred square that is shown over the shorter side of the image.
        """
        if labels.shape != (len(files),) or labels.dtype != torch.int64:
            raise ValueError(f"labels must be ({len(files)},) int64, got {tuple(labels.shape)} {labels.dtype}")
        self.labels = labels
        self.image_shape = (3, size, size)
        self.files = files
        self.share = share
        self._size = size

    def image(self, index: int) -> Tensor:
        """Decode one image (C,H,W) uint8.

        Raises:
            UserError: the file cannot be decoded; the message names it.
        """
        return from_pillow(show_centre(self.whole(index), self._size, self.share))

    def whole(self, index: int) -> Image.Image:
        return read_rgb(self.files[index])

    def all_images(self) -> Tensor:
        """Return all images (N,3,H,W) uint8, channels-last in memory, which is used once."""
        images = torch.empty(len(self), self._size, self._size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)

        def decode(index: int) -> None:
            images[index] = self.image(index)

        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
            for _ in pool.map(decode, range(len(self))):
                pass
        return images

    def subset(self, indices: Tensor) -> Self:
        files = [self.files[index] for index in indices.tolist()]
        return type(self)(files, self.labels[indices], self._size, self.share)

    def refuse_unreadable(self) -> None:
        """Decode every file once, on all cores, and raise UserError for one that cannot be; nothing is kept."""

        def decode(file: AnyFile) -> None:
            read_rgb(file)

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(decode, self.files):
                pass

    @cached_property
    def headers(self) -> "Headers":
        """What the headers of all files say, which takes about 0.1 ms each."""
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(_read_header, self.files))
        plain, heights, widths = zip(*found, strict=True) if found else ((), (), ())
        return Headers(torch.tensor(plain, dtype=torch.bool), torch.tensor(heights), torch.tensor(widths))

    def _digest(self, update: Callable[[Any], None]) -> None:
        """Pass the SHA-256 of each file, which is read whole: about 10 us and 1 ms for each MB."""
        parts = [self.files[first : first + FILES_AT_ONCE] for first in range(0, len(self), FILES_AT_ONCE)]
        with ThreadPoolExecutor() as pool:  # large files are hashed outside the interpreter lock
            for digests in pool.map(lambda files: b"".join(map(_digest, files)), parts):
                update(digests)


def _digest(file: AnyFile) -> bytes:
    """Return the SHA-256 of the content of a file.

    Raises:
        UserError: the file cannot be read.
    """
    with reading(str(file), "the image", REMEDY), open_file(file) as content:
        return hashlib.sha256(content.read()).digest()


def describe_reading(size: int, share: float) -> str:
    """Return what happens to the pixels of an image file, in words."""
    square = "the largest centred square" if share == 1 else f"a centred square of {share:g} of the shorter side"
    return (
        f"{square}, upright, resized to {size} x {size}; 8-bit RGB: 16 bits divided by 257, "
        "transparent pixels on white, other colours as Pillow converts them"
    )


class Headers(NamedTuple):
    """What the headers of N image files say."""

    plain: Tensor
    """(N,) bool: the files that other decoders show as `read_rgb` does."""
    heights: Tensor
    """(N,) int64: rows of pixels of each plain file."""
    widths: Tensor
    """(N,) int64: columns of pixels of each plain file."""


FAULTS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for damaged headers."""

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


def read_rgb(file: AnyFile) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    A grey level v of 16 bits becomes v/257, rounded, and one of 12 bits 255 v/4095; of colours with 16 bits Pillow
    keeps the upper 8. Transparent pixels are composed on white (our choice). Of EXIF data only the orientation is read;
    where it cannot be, the image stays as it is.

    Raises:
        UserError: the file cannot be decoded, or holds floats or integers of 32 bits, which have no white; the message
            names it.
    """
    with reading(str(file), "the image", REMEDY), open_file(file) as content, _open(content) as opened:
        if 0 in opened.size:
            raise ValueError("it has no pixels")
        _scale_clear_level(opened)
        opened.load()  # a TIFF file is turned here
        image, turn = convert_colours(opened, f"the image {file}"), UPRIGHT.get(_orientation(opened))
        return image if turn is None else image.transpose(turn)


def _open(content: BinaryIO) -> ImageFile.ImageFile:
    try:
        return Image.open(content)
    except UnidentifiedImageError:
        raise ValueError("no image format that Pillow knows") from None


def _scale_clear_level(image: ImageFile.ImageFile) -> None:
    """Scale the transparent level of a PNG file as Pillow scales its pixels of 2, 4 or 16 bits."""
    clear, packing = image.info.get("transparency"), _packing(image) if image.format == "PNG" else ""
    if packing in ("L;2", "L;4") and isinstance(clear, int):
        white = 3 if packing == "L;2" else 15
        image.info["transparency"] = (clear & white) * (255 // white)
    if packing == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in clear)


def _packing(image: ImageFile.ImageFile) -> str:
    """Return how the pixels of a PNG or TIFF file that is not loaded yet are packed: a mode, and bits other than 8."""
    form = image.tile[0][3]
    return str(form[0] if isinstance(form, tuple) else form)


def convert_colours(image: Image.Image, name: str) -> Image.Image:
    """Convert an image to 8-bit RGB, see `read_rgb`.

    Args:
        image: the image.
        name: what it is called in the error message.

    Raises:
        UserError: it holds floats or integers of 32 bits, which have no white.
    """
    if image.mode == "F" or (image.mode == "I" and getattr(image, "format", None) != "PPM"):
        kind = "floats" if image.mode == "F" else "integers of 32 bits"
        raise UserError(f"{name} holds {kind}, which have no white: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow clips its 16 bits; those of a PGM file it keeps in 32
        levels = np.asarray(image).astype(np.int64)
        tags = getattr(image, "tag_v2", {})  # of a TIFF file, which may have 12 bits, and 0 for white
        white = 4095 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 65535
        if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
            levels = white - levels
        grey = ((255 * levels + white // 2) // white).astype(np.uint8)
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


PLAIN = {
    "BMP": ("1", "L", "P", "RGB"), "JPEG": ("L", "RGB"), "MPO": ("RGB",), "PNG": ("1", "L", "P", "RGB"),
    "TIFF": ("L", "RGB"), "WEBP": ("RGB",),
}  # fmt: skip
"""Format -> the modes of its images that every decoder shows alike, as far as `_read_header` finds nothing else."""


def _read_header(file: AnyFile) -> tuple[bool, int, int]:
    """Return whether any decoder shows the file as `read_rgb` does, opaque 8-bit RGB or grey that nothing turns, and
    its height and width, which are 0 where it is not plain."""
    try:
        with open_file(file) as content, Image.open(content) as opened:
            if opened.mode not in PLAIN.get(opened.format or "", ()) or opened.has_transparency_data:
                return False, 0, 0
            if opened.format in ("PNG", "TIFF") and opened.mode in ("L", "RGB") and _packing(opened) != opened.mode:
                return False, 0, 0  # other than 8 bits, or 0 for white
            return (True, opened.height, opened.width) if _orientation(opened) == 1 else (False, 0, 0)
    except FAULTS:
        return False, 0, 0
