"""Small random data sets in files of the real formats."""

import hashlib
import pickle
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from tfkd_fast.data import Dataset, DataSettings, open_dataset, superclasses

Arrays = dict[str, Any]


def arrays(size: int = 32, channels: int = 3) -> Arrays:
    random = np.random.default_rng(0)
    return {
        "train_images": random.integers(0, 256, (6, size, size, channels), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 2, 1, 0], np.uint8),
        "test_images": random.integers(0, 256, (3, size, size, channels), dtype=np.uint8),
        "test_labels": np.array([2, 0, 0], np.uint8),
        "classes": np.array(["ant", "bee", "cow"]),
    }


PER_FILE = 6
SOURCES = {"cifar10": CIFAR10, "cifar100": CIFAR100}
CLASSES = {
    "cifar10": [f"class {i}" for i in range(10)],
    "cifar100": sorted(name.replace(" ", "_") for names in superclasses.CIFAR100.values() for name in names),
    "svhn": [str(digit) for digit in range(10)],
}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


class Written:
    """A data set written below `root`, its checksums put in place of torchvision's."""

    def __init__(self, name: str, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.name, self.root = name, root
        self.random = np.random.default_rng(0)
        self.images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
        self.labels: dict[str, list[int]] = {"train": [], "test": []}
        self.files: dict[str, list[Path]] = {"train": [], "test": []}
        root.mkdir(parents=True, exist_ok=True)
        (self._write_svhn if name == "svhn" else self._write_cifar)(patch)

    def open(self, download: bool = False) -> Dataset:
        return open_dataset(DataSettings(dataset=self.name, root=str(self.root)), download=download)

    def _write_cifar(self, patch: pytest.MonkeyPatch) -> None:
        source = SOURCES[self.name]
        folder = self.root / source.base_folder
        folder.mkdir()
        key, count = ("labels", 10) if self.name == "cifar10" else ("fine_labels", 100)
        for part, names in (("train", source.train_list), ("test", source.test_list)):
            for name, _ in names:
                images = self.random.integers(0, 256, (PER_FILE, 3, 32, 32), dtype=np.uint8)
                labels = self.random.integers(0, count, PER_FILE).tolist()
                (folder / name).write_bytes(pickle.dumps({"data": images.reshape(PER_FILE, -1), key: labels}))
                self.images[part].append(images)
                self.labels[part] += labels
                self.files[part].append(folder / name)
        self.meta = folder / source.meta["filename"]
        self.meta.write_bytes(pickle.dumps({source.meta["key"]: CLASSES[self.name]}))
        patch.setattr(source, "train_list", [[file.name, md5(file)] for file in self.files["train"]])
        patch.setattr(source, "test_list", [[file.name, md5(file)] for file in self.files["test"]])
        patch.setattr(source, "meta", source.meta | {"md5": md5(self.meta)})

    def _write_svhn(self, patch: pytest.MonkeyPatch) -> None:
        listing = dict(SVHN.split_list)
        for part in ("train", "test"):
            images = self.random.integers(0, 256, (PER_FILE, 3, 32, 32), dtype=np.uint8)
            labels = [10, 1, 2, 9, 10, 5]  # 10 is the digit 0
            url, name, _ = listing[part]
            file = self.root / name
            arrays = {"X": images.transpose(2, 3, 1, 0), "y": np.array(labels, np.uint8)[:, None]}
            scipy.io.savemat(file, arrays, do_compression=True)
            self.images[part].append(images)
            self.labels[part] += [label % 10 for label in labels]
            self.files[part].append(file)
            listing[part] = [url, name, md5(file)]
        patch.setattr(SVHN, "split_list", listing)


def write_shards(folder: Path, images: int) -> Path:
    """Write random images of two classes, three quarters of them to train on, into shards of WebDataset's layout."""
    random, shards = np.random.default_rng(0), 4
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = "train" if shard < shards - 1 else "test"
        with tarfile.open(folder / f"{part}-{shard:03d}.tar", "w") as tar:
            for i in range(images // shards):
                file = BytesIO()
                Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "png")
                for name, content in ((f"{i:06d}.png", file.getvalue()), (f"{i:06d}.cls", str(i % 2).encode())):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, BytesIO(content))
    return folder
