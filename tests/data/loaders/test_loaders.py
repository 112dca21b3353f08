"""Loaders: the same pixels from each of them, and the right ones."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.loaders.batches import COUNT, CPU, SHAPES, assert_same, collect, dataset_of, loader_of, normalised
from tfkd_fast.data import (
    Batch,
    Dataset,
    DataSettings,
    ImageSet,
    LoaderName,
    make_loader,
    missing_loaders,
    open_dataset,
)
from tfkd_fast.data.images import ArrayImages
from tfkd_fast.device import free_memory
from tfkd_fast.errors import UserError
from tfkd_fast.machine import available_cores
from tfkd_fast.randomness import Purpose, permutation, random_words

DEVICES = [CPU] + [torch.device("cuda")] * torch.cuda.is_available()


def expected_pixels(images: ImageSet, index: int, flip: bool, seed: int, epoch: int, stream: int) -> np.ndarray:
    """The augmented image as numpy and the definition of the random numbers give it, (C,H,W) uint8."""
    words = [
        int(word) for word in random_words(torch.tensor(index), Purpose.AUGMENT, seed=seed, epoch=epoch, stream=stream)
    ]
    image = images.image(index).numpy()
    size = image.shape[1]
    pad = 4 * size // 32
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    top, left = (word * (2 * pad + 1) // 2**32 for word in words[:2])
    window = padded[:, top : top + size, left : left + size]
    return window[:, :, ::-1] if flip and words[2] >= 2**31 else window


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("augment", [True, False])
def test_resident_and_torchvision_give_identical_batches(
    shape: tuple[int, int, int], dtype: torch.dtype, augment: bool, device: torch.device
) -> None:
    dataset = dataset_of(shape)
    settings = DataSettings(batch_size=5, workers=0, augment=augment)
    resident, torchvision = (
        make_loader(dataset.read_train(), dataset, settings.model_copy(update={"loader": name}), device, dtype, seed=5)
        for name in ("resident", "torchvision")
    )
    assert (resident.name, torchvision.name) == ("resident", "torchvision")
    assert len(resident) == len(torchvision) == math.ceil(COUNT / 5)
    for epoch, stream in ((0, 0), (3, 0), (3, 2)):
        assert_same(resident.epoch(epoch, stream), torchvision.epoch(epoch, stream))
    assert_same(resident.in_order(), torchvision.in_order())
    for batch in resident.epoch(0):
        assert batch.images.dtype == dtype
        assert batch.images.device.type == batch.labels.device.type == batch.indices.device.type == device.type
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(workers: int) -> None:
    dataset = dataset_of((3, 32, 32))
    with_workers = loader_of(dataset, "torchvision", workers=workers)
    assert_same(with_workers.epoch(4, 1), loader_of(dataset, "resident").epoch(4, 1))
    next(with_workers.epoch(5))  # an epoch that is left early leaves nothing behind
    assert_same(with_workers.epoch(6), loader_of(dataset, "resident").epoch(6))


@pytest.mark.parametrize("loader", ["resident", "torchvision"])
def test_groups_of_labels_take_turns_in_the_order_that_they_would_have_among_the_others(loader: LoaderName) -> None:
    dataset = dataset_of((3, 32, 32))
    plain = loader_of(dataset, loader)
    labels = dataset.read_train().labels
    classes = labels.unique().tolist()
    groups = [classes[1:], classes[:1]]
    found = collect(plain.with_turns(groups).epoch(3, 1)).indices.tolist()
    before = collect(plain.epoch(3, 1)).indices.tolist()
    assert found == [index for group in groups for index in before if int(labels[index]) in group]
    assert found != before
    assert collect(plain.epoch(3, 1)).indices.tolist() == before


@pytest.mark.parametrize("loader", ["resident", "torchvision"])
def test_images_of_a_class_stand_in_groups_at_the_place_of_the_first(loader: LoaderName) -> None:
    dataset = dataset_of((3, 32, 32))
    plain = loader_of(dataset, loader)
    labels = dataset.read_train().labels.tolist()
    before = collect(plain.epoch(3, 1)).indices.tolist()
    groups = []
    for label in set(labels):
        of_class = [index for index in before if labels[index] == label]
        groups += [of_class[start : start + 3] for start in range(0, len(of_class), 3)]
    groups.sort(key=lambda group: before.index(group[0]))
    assert max(map(len, groups)) == 3
    found = collect(plain.with_class_groups(3).epoch(3, 1)).indices.tolist()
    assert found == [index for group in groups for index in group] != before


@pytest.mark.parametrize("loader", ["resident", "torchvision"])
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_batches_are_the_images_of_whole_ones(loader: LoaderName, parts: int) -> None:
    """Of the last three images one of four parts has none; companions are beside their images."""
    whole = loader_of(dataset_of((3, 32, 32)), loader)
    beside = whole.visit(whole.companion_order("same-class", 2), 2)
    batches, companions = list(whole.epoch(2)), list(beside)
    for number in range(parts):
        part = whole.part(number, parts)
        own = part.visit(part.companion_order("same-class", 2), 2)
        assert len(part) == len(batches)
        assert part.batch_sizes() == [len(batch.labels[number::parts]) for batch in batches]
        for shown, expected in ((part.epoch(2), batches), (own, companions)):
            wanted = [Batch(*(column[number::parts] for column in batch)) for batch in expected]
            assert_same(shown, [batch for batch in wanted if len(batch.labels)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("flip", [True, False])
def test_crops_and_mirroring_are_those_of_numpy(shape: tuple[int, int, int], flip: bool) -> None:
    dataset = dataset_of(shape, flip)
    images = dataset.read_train()
    batch = collect(loader_of(dataset, "resident").epoch(2, stream=1))
    assert torch.equal(batch.indices, permutation(COUNT, seed=5, epoch=2, stream=1))
    assert torch.equal(batch.labels, images.labels[batch.indices])
    for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
        pixels = expected_pixels(images, index, flip, seed=5, epoch=2, stream=1)
        # values of a few units, rounded three times in float32
        torch.testing.assert_close(image, normalised(pixels, dataset), rtol=1e-5, atol=1e-5)


def test_mirroring_follows_the_data_set() -> None:
    """An image whose left half is white and right half black tells whether it was mirrored."""
    pixels = torch.zeros(400, 1, 32, 32, dtype=torch.uint8)
    pixels[..., :16] = 255
    images = ArrayImages(pixels, torch.zeros(400, dtype=torch.int64))

    def mirrored(flip: bool, augment: bool = True) -> int:
        dataset = Dataset("half", ["a"], (1, 32, 32), flip=flip, read_train=lambda: images, read_test=lambda: images)
        batch = collect(loader_of(dataset, "resident", augment=augment).epoch(0))
        return int((batch.images[:, 0, 16, 22] > batch.images[:, 0, 16, 9]).sum())

    assert mirrored(flip=False) == 0
    assert mirrored(flip=True, augment=False) == 0
    assert abs(mirrored(flip=True) - 200) < 5 * math.sqrt(400) / 2  # five standard deviations


@pytest.mark.parametrize("name", ["resident", "torchvision"])
def test_in_order_shows_every_image_as_it_is(name: str) -> None:
    dataset = dataset_of((3, 32, 32))
    batch = collect(loader_of(dataset, name).in_order())
    assert batch.indices.tolist() == list(range(COUNT))
    expected = torch.stack([normalised(image.numpy(), dataset) for image in dataset.read_train().all_images()])
    torch.testing.assert_close(batch.images, expected, rtol=1e-5, atol=1e-5)


def test_without_augmentation_only_the_order_is_random() -> None:
    dataset = dataset_of((3, 32, 32))
    loader = loader_of(dataset, "resident", augment=False)
    shuffled, ordered = collect(loader.epoch(0)), collect(loader.in_order())
    assert shuffled.indices.tolist() != ordered.indices.tolist()
    assert torch.equal(shuffled.images, ordered.images[shuffled.indices])


@pytest.mark.parametrize("name", ["resident", "torchvision"])
def test_a_fresh_loader_goes_on_where_another_stopped(name: str) -> None:
    dataset = dataset_of((3, 32, 32))
    loader = loader_of(dataset, name)
    for epoch in range(3):
        collect(loader.epoch(epoch))
    assert_same(loader.epoch(3), loader_of(dataset, name).epoch(3))


def test_batch_size_changes_neither_order_nor_augmentation() -> None:
    dataset = dataset_of((3, 32, 32))
    assert_same(
        [collect(loader_of(dataset, "resident").epoch(1))],
        [collect(loader_of(dataset, "resident", batch_size=11).epoch(1))],
    )


def test_epochs_streams_and_seeds_differ() -> None:
    dataset = dataset_of((3, 32, 32))
    loader, other_seed = loader_of(dataset, "resident"), loader_of(dataset, "resident", seed=6)
    epochs = [loader.epoch(0), loader.epoch(1), loader.epoch(0, 1), other_seed.epoch(0)]
    batches = [collect(epoch) for epoch in epochs]
    assert len({tuple(batch.indices.tolist()) for batch in batches}) == 4
    # the same image is shown differently, wherever it stands in the order
    shown = [batch.images[batch.indices.argsort()] for batch in batches]
    for other in shown[1:]:
        same = (shown[0] == other).all(dim=(1, 2, 3)).sum()
        assert same < COUNT / 2  # one in 162 is expected


def test_the_last_batch_is_kept() -> None:
    sizes = [len(batch.labels) for batch in loader_of(dataset_of((1, 32, 32)), "resident").epoch(0)]
    assert sizes == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("name", ["resident", "torchvision"])
def test_the_global_random_state_is_left_alone(name: str) -> None:
    loader = loader_of(dataset_of((1, 32, 32)), name, workers=1)
    before = torch.get_rng_state()
    collect(loader.epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_may_be_written_to() -> None:
    loader = loader_of(dataset_of((1, 32, 32)), "resident", augment=False)
    first = next(loader.in_order()).images
    copy = first.clone()
    first.zero_()
    assert torch.equal(next(loader.in_order()).images, copy)


@pytest.mark.parametrize("name", ["torchvision", "dali"])
def test_more_workers_than_a_machine_can_serve_are_refused(name: LoaderName) -> None:
    most = 8 * available_cores()
    if missing_loaders()[name] is None and most < 256:
        with pytest.raises(UserError, match=rf"data\.workers is {most + 1}, .*: set {most} at most"):
            loader_of(dataset_of((1, 32, 32)), name, workers=most + 1)


def test_free_memory_is_plausible() -> None:
    assert 0 < free_memory(CPU) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_an_integer_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype must be a floating-point type, got torch.uint8"):
        loader_of(dataset_of((1, 32, 32)), "resident", dtype=torch.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 256, (50, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def test_a_program_that_keeps_an_epoch_ends() -> None:
    """Its workers end with it, though they get none of the signals that are sent to all processes of a job."""
    code = """
from tests.data.loaders.batches import loader_of
from tests.support.runs import few_images
batches = loader_of(few_images(), "torchvision", workers=2).epoch(0)
first = next(batches)
"""
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


@pytest.mark.parametrize("size", [32, 64])
def test_files_reach_both_loaders_alike(folder: Path, size: int) -> None:
    dataset = open_dataset(DataSettings(dataset="folder", root=str(folder), image_size=size))
    assert_same(loader_of(dataset, "resident").epoch(0), loader_of(dataset, "torchvision", workers=2).epoch(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_sentence_from_a_worker_too(folder: Path, workers: int) -> None:
    dataset = open_dataset(DataSettings(dataset="folder", root=str(folder)))
    loader = loader_of(dataset, "torchvision", workers=workers)
    (folder / "train/b/2.png").write_bytes(b"damaged")
    with pytest.raises(
        UserError, match=r"^the image .*train/b/2.png (is|cannot be|does not) [^\n]*: replace it or delete it$"
    ):
        collect(loader.epoch(0))
