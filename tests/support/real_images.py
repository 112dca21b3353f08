"""Real images, from a folder that an environment variable names."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.once import Once

VARIABLE = "TFKD_FAST_REAL_IMAGES"
PER_CLASS = {"cifar10": 200, "cifar100": 10}


def real_images(name: str, once: Once) -> Path:
    """An .npz file of the first `PER_CLASS` images of each class; without the variable, the test is skipped.

    Raises:
        FileNotFoundError: the folder that the variable names holds no such images.
    """
    if VARIABLE not in os.environ:
        pytest.skip(f"needs real images: {VARIABLE} has to name a folder that holds {name}.npz")
    source = Path(os.environ[VARIABLE]).resolve()

    def fill(folder: Path) -> None:
        if (source / f"{name}.npz").is_file():
            np.savez(folder / f"{name}.npz", **first_of_each_class(source / f"{name}.npz", PER_CLASS[name]))
        elif (source / "unpack.py").is_file():
            command = [sys.executable, source / "unpack.py", name, folder, "--limit", str(PER_CLASS[name])]
            subprocess.run(command, check=True)
        else:
            raise FileNotFoundError(f"{VARIABLE} names {source}, which holds neither {name}.npz nor unpack.py")

    return once(name, fill) / f"{name}.npz"


def first_of_each_class(archive: Path, count: int) -> dict[str, np.ndarray]:
    """The arrays of an archive with the first images of each class, in the order in which they stand there."""
    arrays = dict(np.load(archive))
    for part in ("train", "test"):
        labels = arrays[f"{part}_labels"]
        kept = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))
        arrays |= {f"{part}_{what}": arrays[f"{part}_{what}"][kept] for what in ("images", "labels")}
    return arrays
