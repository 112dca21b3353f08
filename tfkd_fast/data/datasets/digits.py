"""Handwritten digits that are part of scikit-learn: 1,797 images of 8x8 pixels, no download.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tfkd_fast.data.datasets.base import Dataset
from tfkd_fast.data.images import ArrayImages
from tfkd_fast.data.settings import DataSettings
from tfkd_fast.data.split import SPLIT_SEED, split_indices
from tfkd_fast.errors import UserError

SIZE = 32
"""Pixels a side that the images are enlarged to."""

TEST_SHARE = 0.2
"""Share of test images of every class (our choice; the copy in scikit-learn has no training and test parts)."""


def open_digits(settings: DataSettings, download: bool) -> Dataset:
    """Open the digits: one channel, enlarged to 32x32 pixels, never mirrored because a mirrored digit is no digit.

    Raises:
        UserError: the settings name a folder, which this data set does not read.
    """
    if settings.root is not None:
        raise UserError(
            f"data set digits is bundled and reads nothing from {settings.root!r}: leave --data-root out, or name "
            "another --dataset"
        )
    return Dataset(
        "digits",
        [str(digit) for digit in range(10)],
        (1, SIZE, SIZE),
        flip=False,
        read_train=lambda: _read()[0],
        read_test=lambda: _read()[1],
        hash_test=lambda: _read()[1].fingerprint(),
    )


@cache
def _read() -> tuple[ArrayImages, ArrayImages]:
    """Read the training and test images, which are in one file."""
    package = find_spec("sklearn")  # its file is read without the package, which takes a second to import
    if package is None or package.origin is None:
        raise UserError("data set digits is part of scikit-learn, which is not installed: pip install scikit-learn")
    table = np.loadtxt(Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz", delimiter=",")
    grey = torch.from_numpy(table[:, :-1]).float().view(-1, 1, 8, 8) * (255 / 16)  # ink 0 .. 16, then the label
    enlarged = F.interpolate(grey, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(table[:, -1]).long()
    images = ArrayImages(enlarged.round().to(torch.uint8), labels)
    train, test = split_indices(labels, TEST_SHARE, SPLIT_SEED)
    return images.subset(train), images.subset(test)
