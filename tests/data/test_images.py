"""Image sets in memory and in files."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tfkd_fast.data.images import ArrayImages, FileImages, ImageSet
from tfkd_fast.errors import UserError


def pixels(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(params=["memory", "files"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ImageSet, torch.Tensor]:
    """Five images of 32x32 and their pixels."""
    arrays, labels = pixels(5, 32), torch.tensor([0, 1, 0, 1, 1])
    expected = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    if request.param == "memory":
        return ArrayImages(expected, labels), expected
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for file, array in zip(files, arrays, strict=True):
        Image.fromarray(array).save(file)
    return FileImages(files, labels, 32), expected


def test_one_image_all_images_and_a_subset(case: tuple[ImageSet, torch.Tensor]) -> None:
    images, expected = case
    assert len(images) == 5
    assert images.image_shape == (3, 32, 32)
    assert torch.equal(images.all_images(), expected)
    assert torch.equal(images.image(3), expected[3])
    subset = images.subset(torch.tensor([4, 0]))
    assert torch.equal(subset.all_images(), expected[[4, 0]])
    assert subset.labels.tolist() == [1, 0]


@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 48), (100, 64)])
def test_a_file_is_cut_to_its_centre_square(tmp_path: Path, width: int, height: int) -> None:
    """The central square is red, and green lies outside it, where only the filter of the outermost pixels reaches."""
    array = np.zeros((height, width, 3), np.uint8)
    array[..., 1] = 255
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    array[top : top + side, left : left + side] = (255, 0, 0)
    Image.fromarray(array).save(tmp_path / "image.png")
    image = FileImages([tmp_path / "image.png"], torch.tensor([0]), 32).image(0)
    assert (image[:, 1:-1, 1:-1] == torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)).all()
    assert (image[0] > 200).all()


def test_a_large_file_is_averaged_and_not_sampled(tmp_path: Path) -> None:
    """Stripes one pixel wide at four times the size are grey when antialiased, black or white when sampled."""
    stripes = np.zeros((128, 128), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.bmp")
    image = FileImages([tmp_path / "stripes.bmp"], torch.tensor([0]), 32).image(0).int()
    # the triangle filter weighs even and odd columns alike but at the border, where it is cut off
    assert (image[:, :, 2:-2] - 127.5).abs().max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new("RGB", (32, 32), (255, 255, 255)).convert(mode).save(file)
    image = FileImages([file], torch.tensor([0]), 32).image(0)
    assert image.shape == (3, 32, 32)
    assert (image == 255).all()


RAMP = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
COLOURS = np.stack([8 * np.indices((32, 32))[1], 8 * np.indices((32, 32))[0], np.full((32, 32), 128)], -1).astype(
    np.uint8
)
OPACITY = np.where(np.indices((32, 32)).sum(0) % 2, 255, 40).astype(np.uint8)
ON_WHITE = 255 - OPACITY[..., None] / 255 * (255.0 - COLOURS)


def read(file: Path) -> np.ndarray:
    """The image as the network gets it, (32,32,3)."""
    image = FileImages([file], torch.tensor([0]), 32).image(0)
    return image.permute(1, 2, 0).numpy().astype(float)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_grey_of_16_bits_is_scaled(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / name)
    assert np.abs(read(tmp_path / name) - RAMP[..., None] / 257).max() <= 0.5


@pytest.mark.parametrize(("dtype", "what"), [(np.float32, "floats"), (np.int32, "integers of 32 bits")])
def test_pixels_without_a_white_are_refused(tmp_path: Path, dtype: Any, what: str) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray(RAMP.astype(dtype)).save(file)
    with pytest.raises(UserError, match=rf"^the image {file} holds {what}, which have no white: save it with 8 or 16"):
        read(file)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_transparent_pixels_are_composed_on_white(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.dstack([COLOURS, OPACITY])).save(tmp_path / name, lossless=True)
    assert np.abs(read(tmp_path / name) - ON_WHITE).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_grey_level_is_white(tmp_path: Path, bits: int) -> None:
    levels = RAMP if bits == 16 else (RAMP // 257).astype(np.uint8)
    clear = int(levels[3, 5])
    Image.fromarray(levels).save(tmp_path / "a.png", transparency=clear)
    expected = np.where(levels == clear, 255, levels / (257 if bits == 16 else 1))
    assert np.abs(read(tmp_path / "a.png") - expected[..., None]).max() <= 0.5


def with_exif(folder: Path, block: bytes) -> Path:
    """A JPEG, white above and black below, with this EXIF block."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16] = 255
    Image.fromarray(image).save(folder / "plain.jpg", quality=95)
    content, segment = (folder / "plain.jpg").read_bytes(), b"Exif\0\0" + block
    file = folder / "exif.jpg"
    file.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:])
    return file


def directory(*entries: tuple[int, int, int, bytes], after: bytes = b"") -> bytes:
    """A TIFF directory of entries (tag, type, count, four bytes)."""
    packed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + after


DOWN = (0x112, 3, 1, struct.pack("<HH", 3, 0))  # upside down


@pytest.mark.parametrize(
    ("block", "turned"),
    {
        "right": (directory(DOWN), True),
        "a resolution 0/0": (directory(DOWN, (0x11A, 5, 1, struct.pack("<I", 38)), after=bytes(8)), True),
        "a resolution of no type": (directory(DOWN, (0x11A, 7, 4, b"abcd")), True),
        "a pointer that is text": (directory(DOWN, (0x8769, 2, 3, b"ab\0\0")), True),
        "a pointer past the end": (directory(DOWN, (0x8825, 4, 1, struct.pack("<I", 9999))), True),
        "orientation 9": (directory((0x112, 3, 1, struct.pack("<HH", 9, 0))), False),
        "orientation -6": (directory((0x112, 9, 1, struct.pack("<i", -6))), False),
        "orientation 6/0": (directory((0x112, 5, 1, struct.pack("<I", 26)), after=struct.pack("<II", 6, 0)), False),
        "cut off": (b"II*\0", False),
        "empty": (b"", False),
        "no directory": (b"garbage, no tiff at all", False),
    }.values(),
)
def test_of_exif_data_only_the_orientation_is_read(tmp_path: Path, block: bytes, turned: bool) -> None:
    image = read(with_exif(tmp_path, block))
    white = image[20:] if turned else image[:12]
    black = image[:12] if turned else image[20:]
    assert white.min() > 250
    assert black.max() < 5


def test_the_orientation_that_a_camera_wrote_is_followed(tmp_path: Path) -> None:
    array = np.zeros((32, 32, 3), np.uint8)
    array[:16] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(array).save(tmp_path / "image.png", exif=exif)
    image = FileImages([tmp_path / "image.png"], torch.tensor([0]), 32).image(0)
    assert (image[:, 16:] == 255).all()
    assert (image[:, :16] == 0).all()


@pytest.mark.parametrize(
    ("name", "keep"), [("a.png", 0.6), ("a.jpg", 0.6), ("a.bmp", 0.6), ("a.webp", 0.6), ("a.png", 0)]
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, keep: float) -> None:
    file = tmp_path / name
    Image.fromarray(pixels(1, 64)[0]).save(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    images = FileImages([file], torch.tensor([0]), 32)
    with pytest.raises(UserError, match=rf"the image .*{name} (is|cannot be) .*: replace it or delete it$") as caught:
        images.all_images()
    assert "\n" not in str(caught.value)


def test_tensors_of_another_form_are_refused() -> None:
    good = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"images must be \(N,C,H,W\) uint8, got \(2, 3, 32, 32\) torch.float32"):
        ArrayImages(good.float(), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be \(2,\) int64, got \(3,\) torch.int64"):
        ArrayImages(good, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be \(1,\) int64, got \(1,\) torch.float32"):
        FileImages([Path("a.png")], torch.zeros(1), 32)
