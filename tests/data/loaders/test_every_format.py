"""Every kind of image file: the right pixels, and the same ones from every loader."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.loaders.batches import collect, loader_of
from tfkd_fast.data import Dataset, loaders
from tfkd_fast.data.datasets.base import ChannelStatistics
from tfkd_fast.data.images import FileImages

SIDE = 32
RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]
OPACITY = RANDOM.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
PALETTE = RANDOM.integers(0, 256, (256, 3), dtype=np.uint8)
SMOOTH = Image.fromarray(COLOURS[:8, :8]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)

Kind = tuple[str, bytes, np.ndarray | None]
"""Name of a file, its content, and what it shows (32,32,3) in grey levels; None of what no formula gives."""


def on_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """`colours` 0..255 before white, with an opacity 0..1 (32,32)."""
    return 255 - opacity[..., None] * (255 - colours)


def grey(levels: np.ndarray, white: int) -> np.ndarray:
    return np.repeat(levels[..., None] * (255 / white), 3, 2)


def png(depth: int, colour: int, samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """As the PNG specification has it: colour types 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    bits = samples.reshape(SIDE, -1, 1) >> np.arange(depth - 1, -1, -1) & 1
    rows = np.packbits(bits.reshape(SIDE, -1).astype(np.uint8), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def pngs() -> Iterator[Kind]:
    for depth in (1, 2, 4, 8, 16):
        white = 2**depth - 1
        levels = RANDOM.integers(0, white + 1, (SIDE, SIDE))
        clear = int(levels[5, 3])
        yield f"grey {depth}.png", png(depth, 0, levels), grey(levels, white)
        hidden = (b"tRNS", struct.pack(">H", clear))
        yield f"grey {depth}, clear.png", png(depth, 0, levels, hidden), on_white(grey(levels, white), levels != clear)
        if depth <= 8:
            table = (b"PLTE", PALETTE[: white + 1].tobytes())
            shown, opacity = PALETTE[levels].astype(float), np.where(levels == 1, 100 / 255, levels != 0)
            yield f"palette {depth}.png", png(depth, 3, levels, table), shown
            content = png(depth, 3, levels, table, (b"tRNS", bytes([0, 100])))
            yield f"palette {depth}, clear.png", content, on_white(shown, opacity)
        if depth >= 8:
            four = RANDOM.integers(0, white + 1, (SIDE, SIDE, 4))
            parts = (four >> depth - 8) / 255  # Pillow keeps the upper 8 bits of colours
            yield f"colours {depth}.png", png(depth, 2, four[..., :3]), 255 * parts[..., :3]
            content = png(depth, 2, four[..., :3], (b"tRNS", struct.pack(">HHH", *four[5, 3, :3].tolist())))
            clear_colour = (four[..., :3] == four[5, 3, :3]).all(-1)
            yield f"colours {depth}, clear.png", content, on_white(255 * parts[..., :3], ~clear_colour)
            yield f"alpha {depth}.png", png(depth, 6, four), on_white(255 * parts[..., :3], parts[..., 3])
            shown = on_white(grey(parts[..., 0], 1), parts[..., 1])
            yield f"grey and alpha {depth}.png", png(depth, 4, four[..., :2]), shown


def tiff(order: str, bits: int, photometric: int, pixels: bytes, alpha: int | None = None) -> bytes:
    """Uncompressed: photometric 0 grey with 0 for white, 1 grey, 2 RGB; `alpha` is the kind of a fourth channel."""
    channels = 1 if photometric < 2 else 3 + (alpha is not None)
    tags = [(256, SIDE), (257, SIDE), (258, bits), (259, 1), (262, photometric), (273, 200), (277, channels)]
    tags += [(278, SIDE), (279, len(pixels))] + ([] if alpha is None else [(338, alpha)])
    entries = b""
    for tag, value in tags:
        several, long = tag == 258 and channels > 1, tag in (273, 279)
        entries += struct.pack(order + "HHI", tag, 4 if long else 3, channels if several else 1)
        entries += struct.pack(order + "I", 190) if several else struct.pack(order + ("I" if long else "H2x"), value)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4)
    return start.ljust(190, b"\0") + struct.pack(order + "4H", bits, bits, bits, bits).ljust(10, b"\0") + pixels


def tiffs() -> Iterator[Kind]:
    for order, name in (("<", "little"), (">", "big")):
        yield f"grey {name}.tif", tiff(order, 8, 1, GREY.tobytes()), grey(GREY, 255)
        yield f"negative {name}.tif", tiff(order, 8, 0, GREY.tobytes()), grey(255 - GREY, 255)
        yield f"colours {name}.tif", tiff(order, 8, 2, COLOURS.tobytes()), COLOURS.astype(float)
        alpha = np.dstack([COLOURS, OPACITY])
        yield f"alpha {name}.tif", tiff(order, 8, 2, alpha.tobytes(), 2), on_white(COLOURS, OPACITY / 255)
        yield f"no alpha {name}.tif", tiff(order, 8, 2, alpha.tobytes(), 0), COLOURS.astype(float)
        deep = RANDOM.integers(0, 65536, (SIDE, SIDE, 3))
        yield (
            f"deep {name}.tif",
            tiff(order, 16, 1, deep[..., 0].astype(order + "u2").tobytes()),
            grey(deep[..., 0], 65535),
        )
        yield f"deep colours {name}.tif", tiff(order, 16, 2, deep.astype(order + "u2").tobytes()), deep / 257
        nibbles = RANDOM.integers(0, 16, (SIDE, SIDE))
        packed = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).astype(np.uint8)
        yield f"four bits {name}.tif", tiff(order, 4, 1, packed.tobytes()), grey(nibbles, 15)
    deep = RANDOM.integers(0, 65536, (SIDE, SIDE))
    yield "deep negative.tif", tiff("<", 16, 0, deep.astype("<u2").tobytes()), grey(65535 - deep, 65535)
    twelve = RANDOM.integers(0, 4096, (SIDE, SIDE))
    pairs = twelve.reshape(-1, 2)  # 24 bits in three bytes
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    yield "twelve bits.tif", tiff("<", 12, 1, packed.astype(np.uint8).tobytes()), grey(twelve, 4095)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def others() -> Iterator[Kind]:
    colours, shown = Image.fromarray(COLOURS), COLOURS.astype(float)
    cut, on = Image.fromarray(np.dstack([COLOURS, OPACITY])), on_white(COLOURS, OPACITY / 255)
    few = colours.quantize(64)
    shown_few = np.asarray(few.convert("RGB")).astype(float)
    clear_few = on_white(shown_few, np.asarray(few) != 3)
    for form in ("BMP", "PPM", "TGA", "PCX", "QOI"):
        yield f"colours.{form.lower()}", saved(colours, form), shown
    for number, compression in enumerate((None, "tiff_lzw", "tiff_deflate", "packbits")):
        for mode in ("RGB", "L", "P", "1", "LA", "CMYK", "LAB"):
            image = few if mode == "P" else colours.convert(mode)
            yield f"{mode} {number}.tif", saved(image, "TIFF", compression=compression), None
    for mode in ("L", "P", "1"):
        yield f"{mode}.bmp", saved(few if mode == "P" else colours.convert(mode), "BMP"), None
    yield "few.gif", saved(few, "GIF"), shown_few
    yield "clear.gif", saved(few, "GIF", transparency=3), clear_few
    yield "moving.gif", saved(few, "GIF", save_all=True, append_images=[few.rotate(90)]), shown_few
    yield "colours.webp", saved(colours, "WEBP", lossless=True), shown
    yield "alpha.webp", saved(cut, "WEBP", lossless=True, exact=True), on
    yield "lossy.webp", saved(SMOOTH, "WEBP", quality=80), None
    yield "text.pgm", b"P2 32 32 255\n" + b" ".join(b"%d" % level for level in GREY.flat), grey(GREY, 255)
    yield "hundred.pgm", b"P5 32 32 100\n" + (GREY % 101).tobytes(), grey(GREY % 101, 100)
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            content = saved(SMOOTH, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
            yield f"{subsampling} {progressive}.jpg", content, None
    yield "grey.jpg", saved(SMOOTH.convert("L"), "JPEG"), None
    cmyk = saved(SMOOTH.convert("CMYK"), "JPEG", quality=95)
    transform = cmyk.index(b"Adobe") + 11
    yield "cmyk.jpg", cmyk, None
    yield "ycck.jpg", cmyk[:transform] + b"\2" + cmyk[transform + 1 :], None
    turned = {3: shown[::-1, ::-1], 6: np.rot90(shown, -1), 8: np.rot90(shown)}
    for orientation, upright in turned.items():
        exif = Image.Exif()
        exif[0x112] = orientation
        for form in ("PNG", "TIFF", "WEBP"):
            options = {"lossless": True} if form == "WEBP" else {}
            yield f"turned {orientation}.{form.lower()}", saved(colours, form, exif=exif, **options), upright
        yield f"turned {orientation}.jpg", saved(SMOOTH, "JPEG", quality=95, subsampling=0, exif=exif), None


KINDS = [*pngs(), *tiffs(), *others()]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> FileImages:
    folder = tmp_path_factory.mktemp("files")
    for name, content, _ in KINDS:
        (folder / name).write_bytes(content)
    return FileImages([folder / name for name, _, _ in KINDS], torch.zeros(len(KINDS), dtype=torch.int64), SIDE)


def test_pixels_are_what_the_format_says(images: FileImages) -> None:
    """Within the rounding of a grey level, and of a transparent one, which is rounded twice."""
    wrong = {}
    for index, (name, _, shown) in enumerate(KINDS):
        if shown is not None:
            off = np.abs(images.image(index).permute(1, 2, 0).numpy() - shown).max()
            wrong |= {name: off} if off > 1 else {}
    assert not wrong


def test_some_files_are_left_to_dali_and_some_are_not(images: FileImages) -> None:
    plain = {name for (name, _, _), is_plain in zip(KINDS, images.headers.plain.tolist(), strict=True) if is_plain}
    assert {"colours 8.png", "palette 8.png", "RGB 1.tif", "2 True.jpg", "grey.jpg", "colours.webp"} <= plain
    assert not {"grey 16.png", "alpha 8.png", "turned 6.jpg", "cmyk.jpg", "few.gif", "twelve bits.tif"} & plain


@pytest.mark.parametrize("name", ["torchvision", "dali"])
def test_every_loader_shows_the_same_pixels(images: FileImages, name: str) -> None:
    if reason := loaders.missing_loaders()[name]:
        pytest.skip(f"the loader {name} {reason}")
    dataset = Dataset(
        "files", ["a"], images.image_shape, flip=False, read_train=lambda: images, read_test=lambda: images,
        statistics=ChannelStatistics((0.5,) * 3, (0.25,) * 3),
    )  # fmt: skip
    by_name, resident = (
        collect(loader_of(dataset, loader, batch_size=64).in_order()).images for loader in (name, "resident")
    )
    differ = (by_name != resident).flatten(1).any(1)
    assert [kind[0] for kind, different in zip(KINDS, differ.tolist(), strict=True) if different] == []
