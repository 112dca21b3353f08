"""Shards: the images of class folders in tar archives, in the layouts of WebDataset and of packed folders."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import torch

from tests.support.data_files import write_shards
from tfkd_fast.data import DataSettings, open_dataset
from tfkd_fast.data.members import TarMember
from tfkd_fast.errors import UserError

Content = dict[str, bytes]


def write(shard: Path, content: Content, compression: str = "") -> None:
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, f"w:{compression}") as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def png(level: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (40, 30), (level, level, level)).save(file, "png")
    return file.getvalue()


def settings(root: Path, **others: float) -> DataSettings:
    return DataSettings(dataset="webdataset", root=str(root), image_size=32, **others)


def levels(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def refused(root: Path, **others: float) -> str:
    with pytest.raises(UserError) as error:
        open_dataset(settings(root, **others)).read_train()
    return str(error.value)


def test_an_image_and_its_label_are_files_of_one_name(tmp_path: Path) -> None:
    """Numbers sort as numbers, extensions in any case, and what is no image, hidden or without one is left out."""
    write(tmp_path / "set-train-000.tar", {"a.png": png(10), "a.cls": b"10", "a.txt": b"x", "b.PNG": png(20)})
    write(tmp_path / "set-train-001.tar", {"b.cls": b"2\n", ".b.png": b"hidden", "b.png": png(30), "c.json": b"{}"})
    write(tmp_path / "set-test-000.tar", {"e/f.v1.png": png(50), "e/f.png": png(60), "e/f.cls": b"10"})
    assert "b.PNG has no label" in refused(tmp_path)
    write(tmp_path / "set-train-000.tar", {"b.cls": b"2", "a.png": png(10), "a.cls": b"10", "b.PNG": png(20)})
    dataset = open_dataset(settings(tmp_path))
    assert dataset.classes == ["2", "10"]
    train, test = dataset.read_train(), dataset.read_test()
    assert levels(train.all_images()) == [20, 30, 10]
    assert train.labels.tolist() == [0, 0, 1]
    assert levels(test.all_images()) == [60]
    assert test.labels.tolist() == [1]
    assert dataset.parts == "not read: 1 image with more dots in the name than that of its extension"
    assert train.fingerprint() != test.fingerprint()


def test_images_of_one_name_in_shards_of_one_name_are_several(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / f"camera-{number}" / "000.tar", {"a/0.png": png(number), "b/0.png": png(100 + number)})
    dataset = open_dataset(settings(tmp_path))
    train, test = dataset.read_train(), dataset.read_test()
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([8, 8], [2, 2])
    assert sorted([*levels(train.all_images()), *levels(test.all_images())]) == [*range(10), *range(100, 110)]


def test_labels_in_json_class_names_and_validation_shards(tmp_path: Path) -> None:
    def sample(key: str, label: int, level: int) -> Content:
        return {f"{key}.png": png(level), f"{key}.json": json.dumps({"label": label, "size": 3}).encode()}

    write(tmp_path / "train" / "0.tar", sample("a", 1, 10) | sample("b", 0, 20))
    write(tmp_path / "validation" / "0.tar", sample("c", 1, 30))
    (tmp_path / "classes.txt").write_text("zebra\nant\n")
    dataset = open_dataset(settings(tmp_path))
    assert dataset.classes == ["zebra", "ant"]  # of labels 0 and 1
    assert levels(dataset.read_test().all_images()) == [30]
    assert "those of val are the test set" in dataset.parts
    write(tmp_path / "test" / "0.tar", sample("d", 0, 40))
    dataset = open_dataset(settings(tmp_path))
    train = dataset.read_train()
    assert levels(train.all_images()) == [20, 10, 30]
    assert train.held_out is not None
    assert train.held_out.tolist() == [False, False, True]
    assert levels(dataset.read_test().all_images()) == [40]
    (tmp_path / "classes.txt").write_text("zebra\n")
    assert "is 1, and classes.txt names 1 classes" in refused(tmp_path)
    (tmp_path / "classes.txt").write_text("zebra\nfourmi carre\u0301e\n")
    for label in ("fourmi carr\u00e9e", "1"):
        write(tmp_path / "train" / "1.tar", {"e.png": png(50), "e.cls": label.encode()})
        assert open_dataset(settings(tmp_path)).classes == ["zebra", "fourmi carr\u00e9e"]
    for label in ("-1", "bee"):
        write(tmp_path / "train" / "1.tar", {"e.png": png(50), "e.cls": label.encode()})
        assert f"e.cls is {label}, and classes.txt names 2 classes: add it there, or" in refused(tmp_path)


def test_a_packed_folder_is_the_folder(tmp_path: Path) -> None:
    """Without labels the folder in the archive names the class; without parts the images of each class are split."""
    content = {f"set/{name}/{i}.png": png(40 * label + i) for label, name in enumerate("ab") for i in range(10)}
    write(tmp_path / "shards" / "0.tar", dict(list(content.items())[::2]))
    write(tmp_path / "shards" / "1.tar", dict(list(content.items())[1::2]))
    for name, data in content.items():
        file = tmp_path / "folder" / name.removeprefix("set/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    packed = open_dataset(settings(tmp_path / "shards"))
    folder = open_dataset(DataSettings(dataset="folder", root=str(tmp_path / "folder"), image_size=32))
    assert packed.classes == folder.classes
    everything = [
        sorted(levels(data.read_train().all_images()) + levels(data.read_test().all_images()))
        for data in (packed, folder)
    ]
    assert everything[0] == everything[1] == sorted(40 * label + i for label in (0, 1) for i in range(10))
    assert len(packed.read_test()) == len(folder.read_test()) == 4
    assert "there is no shard of test, so 20 % of the images of each class are the test set" in packed.parts


@pytest.mark.parametrize(
    ("shards", "reason"),
    [
        ({}, "holds no shard"),
        ({"test-0.tar": {"a/0.png": b""}}, "no shard of .* has train in its path"),
        ({"train-0.tar": {"a/0.png": b""}, "0.tar": {"a/0.png": b""}}, "0.tar names no part and other shards do"),
        ({"train-test.tar": {"a/0.png": b""}}, "might be of test or train"),
        ({"train-0.tar": {"0.png": b""}}, "0.png has no label"),
        ({"train-0.tar": {"0.png": b"", "0.jpg": b"", "0.cls": b"1"}}, "sample 0 of .*train-0.tar has 2 images"),
        ({"train-0.tar": {"0.png": b"", "0.cls": b" "}}, r"the label .*0\.cls .*it is empty"),
        ({"train-0.tar": {"0.png": b"", "0.json": b"{}"}}, r"the label .*0\.json"),
        ({"train-0.tar": {"0.png": b"", "0.json": b'{"label": null}'}}, r"the label .*neither a number nor a name"),
        ({"train-0.tar": {"0.png": b"", "0.cls": b"9" * 5000}}, r"the label .*holds a number of thousands of digits"),
        (
            {"0.tar": {"0.png": b"", "0.cls": b"3", "1.png": b"", "1.cls": b"03"}},
            "labels 3 and 03, that of .*1.png, are",
        ),
        ({"0.tar": {"a.txt": b""}}, r"^no shard of /.* holds an image whose name has one dot \(\.bmp"),
        (
            {"train-0.tar": {"a/0.png": b""}, "test-0.tar": {"a/0.1.png": b""}},
            r"^no shard of test in .* holds an image",
        ),
        ({"train-0.tar": {"a/0.png": b""}}, "holds the one class 'a'"),
        (
            {"train-0.tar": {"a/0.png": b"", "b/0.png": b""}, "test-0.tar": {"c/0.png": b""}},
            "class 'c' is in .* but not in",
        ),
    ],
)
def test_what_cannot_be_told_is_one_sentence(shards: dict[str, Content], reason: str, tmp_path: Path) -> None:
    for name, content in shards.items():
        write(tmp_path / name, content)
    with pytest.raises(UserError, match=reason) as error:
        open_dataset(settings(tmp_path))
    assert "\n" not in str(error.value)


def test_damaged_and_compressed_shards(tmp_path: Path) -> None:
    shard = tmp_path / "train-0.tar"
    write(shard, {"a/0.png": png(1), "b/1.png": png(2)}, compression="gz")
    assert "that are not compressed" in refused(tmp_path)
    write(shard, {"a/0.png": png(1), "b/1.png": png(2), "a/1.png": png(1), "b/0.png": png(2)})
    whole = shard.read_bytes()
    dataset = open_dataset(settings(tmp_path))
    place = whole.rindex(b"PNG")
    shard.write_bytes(whole[: place + 10])  # after it was listed
    with pytest.raises(UserError, match=r"the image .*train-0\.tar: b/0\.png .*"):
        (dataset.read_train().all_images(), dataset.read_test().all_images())
    header = whole.rindex(b"b/0.png")
    for cut in (header, header + 100, place + 10, len(whole.rstrip(b"\0"))):
        shard.write_bytes(whole[:cut])
        assert re.match(r"the shard .*(it ends early|unexpected end of data|truncated header)", refused(tmp_path))
    shard.write_bytes(whole + whole)
    assert "another archive follows" in refused(tmp_path)
    with pytest.raises(EOFError):
        TarMember(shard, "a", 0, 1 << 20).open()


def test_a_run_trains_on_shards(tmp_path: Path) -> None:
    from tests.support.command import run

    write_shards(tmp_path / "data", 80)
    printed = run(
        *("train", "--dataset", "webdataset", "--data-root", tmp_path / "data", "--epochs", "1", "--device", "cpu"),
        *("--set", "model.width=0.125", "--batch-size", "16", "--out", tmp_path / "run"),
    ).stdout
    assert "test accuracy" in printed
