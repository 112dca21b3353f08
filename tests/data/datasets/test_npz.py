"""One .npz file: read as written, and every fault named in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.data_files import arrays
from tfkd_fast.data import DataSettings, open_dataset
from tfkd_fast.errors import UserError


def settings(file: Path) -> DataSettings:
    return DataSettings(dataset="npz", root=str(file))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (32, 1), (64, 3), (64, 1)])
@pytest.mark.parametrize("label_type", [np.uint8, np.int64, ">i4"])
def test_images_and_labels_are_those_of_the_file(
    tmp_path: Path, save: Callable[..., None], size: int, channels: int, label_type: Any
) -> None:
    content = arrays(size, channels)
    content |= {key: content[key].astype(label_type) for key in ("train_labels", "test_labels")}
    save(tmp_path / "data.npz", **content)
    dataset = open_dataset(settings(tmp_path / "data.npz"))
    assert dataset.classes == ["ant", "bee", "cow"]
    assert dataset.image_shape == (channels, size, size)
    assert dataset.flip
    for part, images in (("train", dataset.read_train()), ("test", dataset.read_test())):
        assert torch.equal(images.all_images(), torch.from_numpy(content[f"{part}_images"]).permute(0, 3, 1, 2))
        assert images.labels.tolist() == content[f"{part}_labels"].tolist()


def test_training_reads_no_test_image(tmp_path: Path) -> None:
    """Test labels out of range would be refused if they were read, and test pixels change nothing."""
    content = arrays()
    np.savez(tmp_path / "good.npz", **content)
    content["test_images"][:] = 0
    content["test_labels"][0] = 99
    np.savez(tmp_path / "bad.npz", **content)
    good, bad = (open_dataset(settings(tmp_path / name)) for name in ("good.npz", "bad.npz"))
    assert torch.equal(good.read_train().all_images(), bad.read_train().all_images())
    assert (good.mean, good.std) == (bad.mean, bad.std)
    with pytest.raises(UserError, match=r"array test_labels in .*bad.npz must be 0 .. 2, holds 99"):
        bad.read_test()


FAULTS = [
    ("train_images", None, "has no array train_images"),
    ("test_labels", None, "has no array test_labels"),
    ("classes", None, "has no array classes"),
    (
        "train_images",
        np.zeros((6, 32, 32, 3), np.float32),
        r"must be \(N,S,S,3\).* uint8.* is \(6, 32, 32, 3\) float32",
    ),
    ("train_images", np.zeros((6, 3, 32, 32), np.uint8), r"array train_images .* is \(6, 3, 32, 32\) uint8"),
    ("train_images", np.zeros((6, 32, 64, 3), np.uint8), r"is \(6, 32, 64, 3\) uint8"),
    ("train_images", np.zeros((6, 28, 28, 1), np.uint8), r"S 32 or 64 .* is \(6, 28, 28, 1\) uint8"),
    ("train_images", np.zeros((0, 32, 32, 3), np.uint8), r"N above 0, is \(0, 32, 32, 3\)"),
    ("test_images", np.zeros((3, 64, 64, 3), np.uint8), r"array test_images .* another shape than train_images"),
    ("train_labels", np.zeros(5, np.int64), r"array train_labels .* must be \(6,\) integers, is \(5,\) int64"),
    ("train_labels", np.zeros(6), r"must be \(6,\) integers, is \(6,\) float64"),
    ("test_labels", np.zeros((3, 1), np.int64), r"must be \(3,\) integers, is \(3, 1\) int64"),
    ("train_labels", np.array([0, 1, 2, 3, 1, 0]), r"array train_labels .* must be 0 .. 2, holds 3"),
    ("train_labels", np.array([0, 1, 2, -1, 1, 0]), r"must be 0 .. 2, holds -1"),
    ("train_labels", np.array([0, 1, 1, 1, 1, 0]), r"holds no image of class 'cow'"),
    ("classes", np.array([1, 2, 3]), r"array classes .* must be \(C,\) strings, is \(3,\) int64"),
    ("classes", np.array(["a", "b", "c"], object), r"array classes .* must be \(C,\) strings, is \(3,\) object"),
    ("classes", np.array("a"), r"must be \(C,\) strings"),
    ("classes", np.array(["a"]), r"must name two classes or more"),
    ("classes", np.array(["a", "b", "a"]), r"must name two classes or more, each once"),
]


@pytest.mark.parametrize(("key", "value", "sentence"), FAULTS)
def test_a_fault_is_one_sentence_that_names_file_and_array(tmp_path: Path, key: str, value: Any, sentence: str) -> None:
    content = {name: array for name, array in (arrays() | {key: value}).items() if array is not None}
    np.savez(tmp_path / "data.npz", **content)
    with pytest.raises(UserError, match=sentence) as caught:
        open_dataset(settings(tmp_path / "data.npz")).read_train()
    assert "data.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_whole_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", **arrays())
    content = (tmp_path / "whole.npz").read_bytes()
    for name, part in (("half.npz", content[: len(content) // 2]), ("text.npz", b"hello"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(UserError, match=f"{name} is not a whole .npz file"):
            open_dataset(settings(tmp_path / name))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_array_is_named(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "data.npz", **arrays())
    content = bytearray((tmp_path / "data.npz").read_bytes())
    middle = 2000  # inside train_images, which stand first and take 18 kB
    content[middle : middle + 50] = bytes(50)
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"array train_images in .*data.npz is damaged"):
        open_dataset(settings(tmp_path / "data.npz")).read_train()


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    content = arrays()
    content["train_images"] = np.array([content["train_images"], None], object)
    np.savez(tmp_path / "data.npz", **content)
    with pytest.raises(UserError, match=r"array train_images .* is \(2,\) object"):
        open_dataset(settings(tmp_path / "data.npz"))


def test_a_missing_file_or_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nothing.npz: name the .npz file with --data-root"):
        open_dataset(settings(tmp_path / "nothing.npz"))
    with pytest.raises(UserError, match=r"there is no file"):
        open_dataset(settings(tmp_path))
    with pytest.raises(UserError, match=r"npz needs its file: name it with --data-root FILE.npz"):
        open_dataset(DataSettings(dataset="npz"))
