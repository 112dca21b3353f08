"""What a stored run says of image files: the likeliest classes of each."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from tfkd_fast.data.datasets.folder import SUFFIXES, list_images
from tfkd_fast.device import resolve_compute
from tfkd_fast.errors import UserError, check_whole_number
from tfkd_fast.files import is_there, reading
from tfkd_fast.models import fixed_weights
from tfkd_fast.ops import conv_algorithms
from tfkd_fast.runs.convolutions import ConvolutionRecord
from tfkd_fast.runs.stored import StoredRun, Weights


class Prediction(NamedTuple):
    """The likeliest classes of an image, the likeliest first."""

    image: Path
    """The path of the image file."""
    labels: tuple[int, ...]
    """The labels of the classes, from 0."""
    classes: tuple[str, ...]
    """The names of the same classes."""
    probabilities: tuple[float, ...]
    """The probabilities of the same classes, see `ImageClassifier.probabilities`."""


def find_images(places: Path | str | Sequence[Path | str]) -> list[Path]:
    """List image files: those that are named, and those in the folders that are named and in the folders below.

    Files of a folder are sorted by name. Hidden files and folders, files that are no images and links to folders are
    skipped.

    Raises:
        UserError: a file or a folder does not exist, or a folder holds no image.
    """
    files: list[Path] = []
    for place in map(Path, [places] if isinstance(places, Path | str) else places):
        if not is_there(place):
            raise UserError(f"there is no image {place}: name image files, or folders of them")
        found = list(_images_below(place)) if place.is_dir() else [place]
        if not found:
            raise UserError(f"{place} holds no image ({', '.join(SUFFIXES)}): name another folder, or image files")
        files += found
    return files


def _images_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    with reading(folder, "the folder", "make it readable"):
        for place, folders, _ in os.walk(folder, onerror=refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from list_images(Path(place))


@torch.no_grad()
def predict(
    run: StoredRun,
    images: Path | str | Sequence[Path | str],
    *,
    weights: Weights = "last",
    top: int = 1,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
) -> list[Prediction]:
    """Classify image files as a run's test classifies those of its data set, with the same normalisation, arithmetic
    and algorithms of convolutions.

    Args:
        run: the run.
        images: the path of an image file or of a folder of them, or several.
        weights: which weights of the run, see `StoredRun.classifier`.
        top: number of classes that are named of each image; all of them where there are fewer.
        batch_size: images in a batch, which alone are in memory.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        precision: "fp32", "bf16", or "auto" for what suits the device.

    Returns:
        A prediction for each file, in the order of `find_images`.

    Raises:
        UserError: the run has no such weights, an image cannot be found or read, or an argument is out of range.
    """
    batch_size, top = check_whole_number("batch_size", batch_size, 1), check_whole_number("top", top, 1)
    files, compute = find_images(images), resolve_compute(device, precision)
    classifier = run.classifier(weights)
    network = compute.place(classifier)
    choices = (run.folder.read_convolutions() or ConvolutionRecord()).available().choices
    predictions = []
    with conv_algorithms.using(choices), fixed_weights(network), compute.autocast():
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            pixels = classifier.normalise(classifier.read(batch).to(compute.device)).to(compute.dtype)
            best = classifier.calibrated(classifier.network(pixels)).topk(min(top, len(classifier.classes)))
            for file, labels, probabilities in zip(batch, best.indices.tolist(), best.values.tolist(), strict=True):
                names = tuple(classifier.classes[label] for label in labels)
                predictions.append(Prediction(file, tuple(labels), names, tuple(probabilities)))
    return predictions
