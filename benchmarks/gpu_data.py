"""A part of a data set that fits into what may be carried to a machine with a GPU: as many images of each class.

    python -m benchmarks.gpu_data cifar100.npz --megabytes 37 --out build/gpu-data.npz

Images are kept as they are, in the format of the data set `npz`; a tenth of the bytes are test images. The libraries
for one GPU, the sources and the wheels that the package needs take about 25 MB beside them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TEST_SHARE = 0.1


def of_each_class(labels: NDArray[np.integer], count: int) -> NDArray[np.intp]:
    """The places of the first `count` images of each class, or of all where there are fewer, in their order."""
    places = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(places))


def part_of(file: Path, megabytes: float, out: Path) -> tuple[int, int]:
    """Write a part of a data set whose compressed images take so many MB; returns its numbers of images.

    Args:
        file: `train_images`, `train_labels`, `test_images`, `test_labels` and `classes`, compressed or not.
        megabytes: millions of bytes.
        out: the file to write.
    """
    with np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    out.parent.mkdir(parents=True, exist_ok=True)
    sample = arrays["train_images"][:: max(1, len(arrays["train_images"]) // 1000)]
    np.savez_compressed(out, images=sample)
    affordable = megabytes * 1e6 / (out.stat().st_size / len(sample))
    kept = {"classes": arrays["classes"]}
    counts = []
    for part, share in (("train", 1 - TEST_SHARE), ("test", TEST_SHARE)):
        labels = arrays[f"{part}_labels"]
        places = of_each_class(labels, int(affordable * share / len(np.unique(labels))))
        kept |= {f"{part}_images": arrays[f"{part}_images"][places], f"{part}_labels": labels[places]}
        counts.append(len(places))
    np.savez_compressed(out, **kept)
    return counts[0], counts[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the whole data set, .npz")
    parser.add_argument("--megabytes", type=float, default=37.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    train, test = part_of(options.file, options.megabytes, options.out)
    print(f"{options.out}: {train} + {test} images, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
