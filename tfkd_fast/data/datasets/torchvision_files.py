"""CIFAR-10, CIFAR-100 and SVHN, read from the files that torchvision downloads.

Addresses, names and checksums are torchvision's. Its classes are not used to read the files, because they open the test
images of CIFAR along with the training images and do not say which file is damaged. No file is parsed before its
checksum is verified: those of CIFAR are pickles. torchvision takes a second to import, so only its data sets import it.
"""

import hashlib
import io
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tfkd_fast.data.datasets.base import ChannelStatistics, Dataset
from tfkd_fast.data.images import ArrayImages
from tfkd_fast.data.settings import DEFAULT_ROOT, DataSettings
from tfkd_fast.errors import UserError

# CIFAR-100's are RepDistiller's (Tian et al., 2020); the others are in wide use. All are of the training images.
STATISTICS = {
    "cifar10": ChannelStatistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ChannelStatistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "svhn": ChannelStatistics((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


class ChecksummedFiles:
    """The files of one data set in one folder, each with its MD5 checksum."""

    def __init__(self, dataset: str, folder: Path, checksums: dict[str, str]) -> None:
        self.dataset, self.folder, self.checksums = dataset, folder, checksums

    def provide(self, fetch: Callable[[], None] | None) -> None:
        """Ensure that all files exist; with `fetch`, also that their checksums are right, and fetch them if not.

        Args:
            fetch: downloads the files; None if they must not be downloaded.

        Raises:
            UserError: the download failed, or a file is missing.
        """
        if fetch and not all(map(self._is_whole, self.checksums)):
            try:
                fetch()
            except (OSError, RuntimeError, EOFError) as error:
                raise UserError(
                    f"downloading {self.dataset} to {self.folder} failed ({error}): try again, or put its files there"
                ) from None
        for name in self.checksums:
            if not (self.folder / name).is_file():
                raise UserError(
                    f"{self.dataset} is not in {self.folder} ({name} is missing): "
                    "fetch it with --download or name its place with --data-root"
                )

    def read(self, name: str) -> bytes:
        """Return the content of a file after verifying its checksum.

        Raises:
            UserError: the checksum is wrong.
        """
        content = (self.folder / name).read_bytes()
        if _md5(content) != self.checksums[name]:
            raise UserError(
                f"{self.folder / name} is truncated or damaged (its checksum is not that of {self.dataset}): "
                "fetch it again with --download"
            )
        return content

    def fingerprint(self, names: Sequence[str]) -> str:
        """Return a fingerprint of files by their checksums, which hold of whatever `read` returns."""
        return hashlib.sha256("".join(self.checksums[name] for name in names).encode()).hexdigest()

    def _is_whole(self, name: str) -> bool:
        file = self.folder / name
        return file.is_file() and _md5(file.read_bytes()) == self.checksums[name]


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def open_cifar(settings: DataSettings, download: bool) -> Dataset:
    """Open CIFAR-10 or CIFAR-100: 60,000 RGB photographs of 32x32 pixels.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Raises:
        UserError: the files are missing, damaged, or cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10, CIFAR100, utils

    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[settings.dataset]
    train, test = ([name for name, _ in part] for part in (source.train_list, source.test_list))
    checksums = dict(source.train_list + source.test_list)
    checksums[source.meta["filename"]] = source.meta["md5"]
    root = _root(settings)
    files = ChecksummedFiles(settings.dataset, root / source.base_folder, checksums)
    fetch = partial(utils.download_and_extract_archive, source.url, root, filename=source.filename, md5=source.tgz_md5)
    files.provide(fetch if download else None)
    classes = pickle.loads(files.read(source.meta["filename"]), encoding="latin1")[source.meta["key"]]
    return Dataset(
        settings.dataset,
        list(classes),
        (3, 32, 32),
        flip=True,
        read_train=lambda: _read_cifar(files, train),
        read_test=lambda: _read_cifar(files, test),
        hash_test=lambda: files.fingerprint(test),
        statistics=STATISTICS[settings.dataset],
    )


def _read_cifar(files: ChecksummedFiles, names: list[str]) -> ArrayImages:
    batches: list[dict[str, Any]] = [pickle.loads(files.read(name), encoding="latin1") for name in names]
    images = torch.cat([torch.from_numpy(batch["data"]) for batch in batches]).view(-1, 3, 32, 32)
    labels = [label for batch in batches for label in batch.get("labels") or batch["fine_labels"]]
    return ArrayImages(images, torch.tensor(labels))


def open_svhn(settings: DataSettings, download: bool) -> Dataset:
    """Open SVHN: RGB house numbers of 32x32 pixels, without the "extra" images.

    Images are never mirrored, because a mirrored digit is no digit. Source: Netzer et al., "Reading Digits in Natural
    Images with Unsupervised Feature Learning", 2011.

    Raises:
        UserError: the files are missing, damaged, or cannot be downloaded.
    """
    from torchvision.datasets import SVHN, utils

    parts = {part: SVHN.split_list[part] for part in ("train", "test")}
    root = _root(settings)
    files = ChecksummedFiles("svhn", root, {name: md5 for _, name, md5 in parts.values()})

    def fetch() -> None:
        for url, name, md5 in parts.values():
            utils.download_url(url, root, name, md5)

    files.provide(fetch if download else None)
    return Dataset(
        "svhn",
        [str(digit) for digit in range(10)],
        (3, 32, 32),
        flip=False,
        read_train=lambda: _read_svhn(files, parts["train"][1]),
        read_test=lambda: _read_svhn(files, parts["test"][1]),
        hash_test=lambda: files.fingerprint([parts["test"][1]]),
        statistics=STATISTICS["svhn"],
    )


def _read_svhn(files: ChecksummedFiles, name: str) -> ArrayImages:
    from scipy.io import loadmat  # slow to import, and no other data set needs it

    arrays = loadmat(io.BytesIO(files.read(name)))
    images = torch.from_numpy(arrays["X"]).permute(3, 2, 0, 1).contiguous()  # from (32,32,3,N)
    labels = torch.from_numpy(arrays["y"]).long().flatten() % 10  # the file says 10 for the digit 0
    return ArrayImages(images, labels)


def _root(settings: DataSettings) -> Path:
    return Path(settings.root or DEFAULT_ROOT).expanduser()
