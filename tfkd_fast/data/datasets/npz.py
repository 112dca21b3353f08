"""Data sets in one .npz file with train_images, train_labels, test_images, test_labels and classes."""

import hashlib
import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy

from tfkd_fast.data.datasets.base import Dataset
from tfkd_fast.data.datasets.identity import class_name
from tfkd_fast.data.images import ArrayImages
from tfkd_fast.data.settings import LARGEST_IMAGE, SMALLEST_IMAGE, DataSettings
from tfkd_fast.device import free_memory
from tfkd_fast.errors import UserError
from tfkd_fast.files import open_regular, reading

REMEDY = "write the file again with numpy.savez"
MOST_HEADER_BYTES = 16_384
"""Bytes of the header of an array that are read; those of plain arrays have some hundred."""

CHUNK = 2**20
"""Bytes of an array that are hashed at a time."""

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")
"""Names of the arrays in the file."""


def open_npz(settings: DataSettings, download: bool) -> Dataset:
    """Open an .npz file.

    It holds images (N,S,S,3) or (N,S,S,1) uint8 with S from 28 to 384, labels (N,) of any integer type in 0 .. C-1, and
    classes (C,) as strings. All shapes and dtypes are checked at once from the headers of the arrays; no pickled object
    is ever loaded.

    Raises:
        UserError: no file is named, or it lacks an array, is damaged, or holds arrays of another shape or dtype.
    """
    if settings.root is None:
        raise UserError("data set npz needs its file: name it with --data-root FILE.npz")
    file = NpzFile(Path(settings.root).expanduser())
    classes = file.classes()
    image_shape = file.check_images("train", None)
    file.check_images("test", image_shape)
    return Dataset(
        "npz",
        classes,
        image_shape,
        flip=True,
        read_train=lambda: file.images("train", classes, all_classes=True),
        read_test=lambda: file.images("test", classes, all_classes=False),
        hash_test=lambda: file.fingerprint("test"),
    )


class NpzFile:
    """The archive of an npz data set; every fault raises a UserError that names the file and the array."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with reading(path, "the .npz file", REMEDY), open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
        for key in KEYS:
            if f"{key}.npy" not in names:
                raise UserError(f"{path} has no array {key}: an npz data set needs {', '.join(KEYS)}")

    def classes(self) -> list[str]:
        """Read the class names, in label order."""
        shape, dtype = self._header("classes")
        if dtype.kind != "U" or len(shape) != 1:
            raise self._fault("classes", f"must be (C,) strings, is {_describe(shape, dtype)}")
        names = [class_name(str(name)) for name in self._array("classes")]
        if len(names) < 2 or len(set(names)) < len(names):
            raise self._fault("classes", f"must name two classes or more, each once, names {len(set(names))}")
        return names

    def check_images(self, part: str, image_shape: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """Check the headers of a part's images and labels, and return the shape (C,H,W) of an image.

        Args:
            part: "train" or "test".
            image_shape: the shape that images must have; None for any.
        """
        shape, dtype = self._header(f"{part}_images")
        fits = len(shape) == 4 and shape[0] > 0 and shape[1] == shape[2] and shape[3] in (1, 3)
        fits = fits and SMALLEST_IMAGE <= shape[1] <= LARGEST_IMAGE
        if dtype != np.uint8 or not fits:
            wanted = f"(N,S,S,3) or (N,S,S,1) uint8 with S from {SMALLEST_IMAGE} to {LARGEST_IMAGE} and N above 0"
            raise self._fault(f"{part}_images", f"must be {wanted}, is {_describe(shape, dtype)}")
        found = (shape[3], shape[1], shape[2])
        if image_shape not in (None, found):
            raise self._fault(f"{part}_images", f"holds images of another shape than train_images: {shape[1:]}")
        label_shape, label_dtype = self._header(f"{part}_labels")
        if label_dtype.kind not in "iu" or label_shape != shape[:1]:
            raise self._fault(
                f"{part}_labels", f"must be ({shape[0]},) integers, is {_describe(label_shape, label_dtype)}"
            )
        return found

    def images(self, part: str, classes: list[str], *, all_classes: bool) -> ArrayImages:
        """Read the images of a part.

        Args:
            part: "train" or "test".
            classes: class names in label order.
            all_classes: whether every class must have an image.
        """
        labels = self._array(f"{part}_labels")
        outside = labels[(labels < 0) | (labels >= len(classes))]
        if len(outside):
            raise self._fault(f"{part}_labels", f"must be 0 .. {len(classes) - 1}, holds {outside[0]}")
        labels = labels.astype(np.int64)
        if all_classes:
            for label in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0):
                raise self._fault(f"{part}_labels", f"holds no image of class {classes[label]!r}")
        images = torch.from_numpy(self._array(f"{part}_images")).permute(0, 3, 1, 2)
        return ArrayImages(images, torch.from_numpy(labels))

    def fingerprint(self, part: str) -> str:
        """Return the SHA-256, in hexadecimal, of the images and labels of a part, as bytes of arrays that nobody reads.

        Args:
            part: "train" or "test".
        """
        digest = hashlib.sha256()
        for key in (f"{part}_images", f"{part}_labels"):
            with self._member(key) as (member, _):
                while chunk := member.read(CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()

    def _header(self, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Read the shape and dtype of an array, without its content."""
        with self._member(key) as (member, _):
            return _read_header(member)

    def _array(self, key: str) -> np.ndarray[Any, Any]:
        """Read an array; its size is compared with that of its member before there is memory for it."""
        with self._member(key) as (member, stored):
            shape, dtype = _read_header(member)
            size = math.prod(shape) * dtype.itemsize
            if size > stored:
                raise ValueError(f"{_describe(shape, dtype)} in {stored} bytes")
            if size > free_memory(torch.device("cpu")):
                raise MemoryError
            member.seek(0)
            array: np.ndarray[Any, Any] = npy.read_array(member, allow_pickle=False)
            if member.read(1):  # to the end, where the archive's checksum of header and content is compared
                raise ValueError(f"{_describe(shape, dtype)} in {stored} bytes")
        return array

    @contextmanager
    def _member(self, key: str) -> Iterator[tuple[IO[bytes], int]]:
        """Context manager for a block that reads an array, with its number of bytes; errors become a sentence."""
        with (
            reading(self._path, f"array {key} in", REMEDY),
            open_regular(self._path) as file,
            zipfile.ZipFile(file) as archive,
            archive.open(f"{key}.npy") as member,
        ):
            yield member, archive.getinfo(f"{key}.npy").file_size

    def _fault(self, key: str, what: str) -> UserError:
        return UserError(f"array {key} in {self._path} {what}: write the file again")


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the shape and dtype at the beginning of an array's file.

    Raises:
        ValueError: they are damaged.
    """
    start = io.BytesIO(member.read(MOST_HEADER_BYTES))
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0, (3, 0): npy.read_array_header_2_0}
    shape, _, dtype = readers[npy.read_magic(start)](start)
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    return shape, dtype


def _describe(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{shape} {dtype}"
