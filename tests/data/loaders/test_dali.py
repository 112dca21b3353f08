"""DALI against the other loaders, and against Pillow."""

import gc
import os
import signal
import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.loaders.batches import COUNT, SHAPES, assert_same, collect, dataset_of, loader_of
from tfkd_fast.data import Dataset, DataSettings, make_loader, missing_loaders, open_dataset
from tfkd_fast.data.augmentation import Augmentation
from tfkd_fast.data.datasets.base import ChannelStatistics
from tfkd_fast.data.images import FileImages
from tfkd_fast.errors import UserError

if reason := missing_loaders()["dali"]:
    pytest.skip(f"the loader dali {reason}", allow_module_level=True)

from tfkd_fast.data.loaders.dali import DaliPixels

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
RANDOM = np.random.default_rng(0)


def noise(height: int, width: int, *channels: int) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, *channels), dtype=np.uint8))


def smooth(height: int, width: int) -> Image.Image:
    """What JPEG is made for."""
    return noise(height // 4, width // 4, 3).resize((width, height), Image.Resampling.BICUBIC)


def write(folder: Path, images: dict[str, Image.Image], **options: Any) -> FileImages:
    for name, image in images.items():
        image.save(folder / name, **options)
    return FileImages([folder / name for name in images], torch.arange(len(images)) % 2, 32)


def by_dali(images: FileImages, device: str = "cpu") -> torch.Tensor:
    """Every image as it is, (N,C,H,W) uint8."""
    source = DaliPixels(images, Augmentation(0, flip=False), torch.device(device), batch_size=len(images), workers=1)
    (pixels,) = source.pixels([Augmentation(0, flip=False).plain_views(torch.arange(len(images), device=device))])
    return pixels.cpu()


def difference(images: FileImages, device: str = "cpu") -> torch.Tensor:
    """Between DALI and Pillow, (N,C,H,W) grey levels."""
    return (by_dali(images, device).int() - images.all_images().int()).abs()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("augment", [True, False])
def test_arrays_are_those_of_the_resident_loader(shape: tuple[int, int, int], augment: bool, device: str) -> None:
    dataset = dataset_of(shape)
    resident, dali = (
        make_loader(
            dataset.read_train(),
            dataset,
            DataSettings(loader=name, batch_size=5, augment=augment),
            torch.device(device),
            torch.float32,
            seed=5,
        )
        for name in ("resident", "dali")
    )
    assert dali.name == "dali"
    for epoch, stream in ((0, 0), (3, 0), (3, 2)):
        assert_same(dali.epoch(epoch, stream), resident.epoch(epoch, stream))
    assert_same(dali.in_order(), resident.in_order())
    for batch in dali.epoch(0):
        assert batch.images.device.type == device
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [32, 64])
def test_png_files_of_the_right_size_are_those_of_the_other_loaders(tmp_path: Path, size: int, device: str) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(6):
                noise(size, size, 3).save(tmp_path / part / name / f"{i}.png")
    dataset = open_dataset(DataSettings(dataset="folder", root=str(tmp_path), image_size=size))
    resident, torchvision, dali = (
        make_loader(
            dataset.read_train(),
            dataset,
            DataSettings(loader=name, batch_size=5),
            torch.device(device),
            torch.float32,
            seed=5,
        )
        for name in ("resident", "torchvision", "dali")
    )
    for epoch in (0, 3):
        assert_same(dali.epoch(epoch), resident.epoch(epoch))
        assert_same(dali.epoch(epoch), torchvision.epoch(epoch))
    assert_same(dali.in_order(), resident.in_order())


@pytest.mark.parametrize("workers", [0, 2])
def test_threads_change_nothing(workers: int) -> None:
    dataset = dataset_of((3, 32, 32))
    loader = loader_of(dataset, "dali", workers=workers)
    assert_same(loader.epoch(4, 1), loader_of(dataset, "resident").epoch(4, 1))


def test_an_epoch_that_is_left_early_leaves_nothing_behind() -> None:
    dataset = dataset_of((3, 32, 32))
    loader, resident = loader_of(dataset, "dali"), loader_of(dataset, "resident")
    for epoch in range(4):
        next(loader.epoch(epoch))
        assert_same(loader.epoch(epoch), resident.epoch(epoch))


def test_epochs_at_the_same_time_do_not_mix() -> None:
    dataset = dataset_of((3, 32, 32))
    loader, resident = loader_of(dataset, "dali"), loader_of(dataset, "resident")
    pairs = list(zip(loader.epoch(0, 0), loader.epoch(0, 1), strict=True))
    for stream in (0, 1):
        assert_same([pair[stream] for pair in pairs], resident.epoch(0, stream))
    seen: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda stream=stream: seen.update({stream: collect(loader.epoch(1, stream))}))
        for stream in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for stream in range(4):
        assert_same([seen[stream]], [collect(resident.epoch(1, stream))])


def test_pixels_stay_when_later_ones_come() -> None:
    """A batch is memory of its own, not a buffer of the pipeline that is filled again."""
    images = dataset_of((3, 32, 32)).read_train()
    source = DaliPixels(images, Augmentation(0, flip=False), torch.device("cpu"), batch_size=2, workers=1)
    views = Augmentation(0, flip=False).plain_views(torch.arange(COUNT)).batches(2)
    for _ in range(2):
        assert torch.equal(torch.cat(list(source.pixels(views))), images.all_images())


def test_a_forked_process_does_not_touch_the_pipelines_of_its_parent() -> None:
    """They have no threads there, and to destroy one would wait for them: workers of torchvision are forked."""
    dataset = dataset_of((3, 32, 32))
    garbage: list[Any] = [loader_of(dataset, "dali")]
    collect(garbage[0].epoch(0))
    garbage.append(garbage)  # only a garbage collector gets rid of it
    gc.disable()
    try:
        del garbage
        if (child := os.fork()) == 0:
            gc.collect()
            os._exit(0)
    finally:
        gc.enable()
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_the_global_random_state_is_left_alone() -> None:
    loader = loader_of(dataset_of((1, 32, 32)), "dali")
    before = torch.get_rng_state()
    collect(loader.epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("device", DEVICES)
def test_every_format_of_the_right_size_keeps_its_pixels(tmp_path: Path, device: str) -> None:
    names = ["a.png", "b.bmp", "c.ppm", "d.tif", "e.webp"]
    images = {name: noise(32, 32, 3) for name in names}
    images |= {"grey.png": noise(32, 32), "grey.pgm": noise(32, 32)}
    images["palette.png"] = noise(32, 32, 3).convert("P")
    assert difference(write(tmp_path, images, lossless=True), device).max() == 0


@pytest.mark.parametrize("device", DEVICES)
def test_jpeg_differs_by_no_more_than_decoders_may(tmp_path: Path, device: str) -> None:
    """A decoder may be off by 1 in each of Y, Cb, Cr (IEEE 1180), and rounds by 0.5 when it makes RGB of them: blue is
    Y + 1.772 Cb, so 1 + 1.772 + 0.5 for one decoder and integers on both sides. Without subsampled colours, whose
    interpolation no standard fixes."""
    images = write(tmp_path, {f"{i}.jpg": smooth(32, 32) for i in range(8)}, quality=90, subsampling=0)
    assert difference(images, device).max() <= 3


SHAPES_OF_FILES = {
    "odd": (50, 41),
    "wide": (33, 70),
    "tall": (500, 375),
    "even": (64, 64),
    "smaller": (20, 17),
    "much smaller": (9, 9),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SHAPES_OF_FILES)
def test_the_centred_square_is_resized_as_pillow_does(tmp_path: Path, name: str, device: str) -> None:
    """Pillow rounds to integers between its two passes and after them, together at most 1 off; DALI rounds once, 0.5.

    An outermost pixel of a reduced image loses an eighth of a triangle's weight over the edge. Pillow gives it to the
    other pixels, DALI to the last one: at most 255/8 in each direction.
    """
    off = difference(write(tmp_path, {"image.png": noise(*SHAPES_OF_FILES[name], 3)}), device)
    assert off[..., 1:-1, 1:-1].max() <= 1
    assert off.max() <= 1 + 2 * 255 / 8


def set_of(images: FileImages) -> Dataset:
    """Its statistics are given, so that no file is read before the loader does."""
    statistics = ChannelStatistics((0.5,) * 3, (0.2,) * 3)
    return Dataset(
        "files", ["a", "b"], images.image_shape, flip=True,
        read_train=lambda: images, read_test=lambda: images, statistics=statistics,
    )  # fmt: skip


@pytest.mark.parametrize("fault", ["damaged", "truncated", "empty", "missing"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, fault: str) -> None:
    images = write(tmp_path, {f"{i}.jpg": smooth(60, 40) for i in range(COUNT)})
    bad = tmp_path / "17.jpg"
    content = {"damaged": b"damaged", "truncated": bad.read_bytes()[:400], "empty": b""}
    bad.unlink() if fault == "missing" else bad.write_bytes(content[fault])
    loader = loader_of(set_of(images), "dali")
    with pytest.raises(UserError, match=rf"^the image {bad} (is|cannot be|does not) [^\n]*: replace it or delete it$"):
        collect(loader.epoch(0))


def test_what_only_dali_cannot_read_is_one_sentence(tmp_path: Path) -> None:
    images = write(tmp_path, {"image.tif": noise(32, 32, 3)})
    content = bytearray(images.files[0].read_bytes())
    height = content.index(struct.pack("<HHII", 257, 4, 1, 32)) + 8
    content[height] += 1  # a row more than there is
    images.files[0].write_bytes(content)
    images.image(0)
    with pytest.raises(UserError, match=r"^DALI cannot read an image that Pillow can \([^\n]+\): use --loader torchv"):
        by_dali(images)
