"""One .npz file: read as written, and every fault named in one sentence."""

import zipfile
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
    ("train_images", np.zeros((6, 27, 27, 1), np.uint8), r"S from 28 to 384 .* is \(6, 27, 27, 1\) uint8"),
    ("train_images", np.zeros((6, 385, 385, 1), np.uint8), r"S from 28 to 384 .* is \(6, 385, 385, 1\) uint8"),
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
        with pytest.raises(UserError, match=f"{name} is damaged or of another kind"):
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
    with pytest.raises(UserError, match=r"the .npz file .*nothing.npz does not exist"):
        open_dataset(settings(tmp_path / "nothing.npz"))
    with pytest.raises(UserError, match=r"is a folder"):
        open_dataset(settings(tmp_path))
    with pytest.raises(UserError, match=r"npz needs its file: name it with --data-root FILE.npz"):
        open_dataset(DataSettings(dataset="npz"))


def written(path: Path, key: str, header: bytes, content: bytes = b"", **member: Any) -> DataSettings:
    """A data set whose array `key` has another header, and other attributes in the archive."""
    np.savez(path, **arrays())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[f"{key}.npy"] = header + content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    if member:
        raw = bytearray(path.read_bytes())
        start = raw.index(b"PK\x01\x02", 0)  # its entry in the list of contents
        while key.encode() not in raw[start : start + 80]:
            start = raw.index(b"PK\x01\x02", start + 4)
        local = int.from_bytes(raw[start + 42 : start + 46], "little")
        for offset, place in ((8, start), (6, local)):
            raw[place + offset] |= member.get("flags", 0)
        for offset, place in ((10, start), (8, local)):
            raw[place + offset] = member.get("method", raw[place + offset])
        path.write_bytes(raw)
    return settings(path)


def npy(text: str, version: int = 1) -> bytes:
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode()


def read_all(settings: DataSettings) -> None:
    dataset = open_dataset(settings)
    dataset.read_train()
    dataset.read_test()


LABELS = npy("{'descr': '<i8', 'fortran_order': False, 'shape': (6,), }")
HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 32, 32, 3), }"


@pytest.mark.parametrize(
    ("key", "header", "member", "reason"),
    [
        ("train_images", npy(HUGE % 2**40), {}, r"the labels of|must be \(1099511627776,\) integers"),
        ("test_images", npy(HUGE % 3), {}, r"\(3, 32, 32, 3\) uint8 in \d+ bytes"),
        ("train_labels", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-6,), }"), {}, "its shape is"),
        ("train_labels", npy("(" * 5000), {}, "is nested too deeply|is damaged|memory"),
        ("train_labels", npy(" " * 30_000_000, 2), {}, "EOF|header"),
        ("train_labels", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (6,), }", 9), {}, r"\(9, 0\)"),
        ("classes", npy("{'descr': '<U999999999', 'fortran_order': False, 'shape': (2,), }"), {}, "not a valid dtype"),
        ("train_labels", LABELS + bytes(48), {"flags": 1}, "encrypted"),
        ("train_labels", LABELS + bytes(48), {"method": 99}, "compression"),
        ("train_labels", b"", {}, "EOF"),
    ],
)
def test_what_no_memory_holds_or_nobody_can_read_is_refused(
    tmp_path: Path, key: str, header: bytes, member: dict[str, int], reason: str
) -> None:
    """Before there is memory for it: the shapes are those of terabytes."""
    opened = written(tmp_path / "data.npz", key, header, **member)
    with pytest.raises(UserError, match=reason) as caught:
        read_all(opened)
    assert "data.npz" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_labels_that_no_signed_number_holds_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays() | {"train_labels": np.array([0, 1, 2, 2, 1, 2**64 - 1], np.uint64)})
    with pytest.raises(UserError, match=r"must be 0 .. 2, holds 18446744073709551615"):
        open_dataset(settings(tmp_path / "data.npz")).read_train()


def test_names_of_classes_can_be_shown(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays() | {"classes": np.array(["ant", "b\x1b[2Jee", "c\udcffw"])})
    assert open_dataset(settings(tmp_path / "data.npz")).classes == ["ant", r"b\x1b[2Jee", r"c\udcffw"]
