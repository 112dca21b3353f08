"""An exported student with integers of 8 bits for weights and activations, and what that costs and saves."""

import shlex
import tempfile
import timeit
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tfkd_fast.data import ImageSet, open_dataset
from tfkd_fast.errors import UserError
from tfkd_fast.files import read_bytes, write_bytes
from tfkd_fast.models import NetworkOrFactory
from tfkd_fast.plugins import explain
from tfkd_fast.runs.export import (
    IMAGES,
    ONNX_NEEDS,
    Inside,
    choose_training_images,
    describe,
    describe_export,
    open_onnx,
    run_onnx,
    take_in,
)
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.provenance import refuse_other_data
from tfkd_fast.runs.stored import Weights, load_run
from tfkd_fast.strict_json import to_json

CALIBRATED_ON = 256
"""Number of training images that the ranges of activations are found on (our choice)."""
BATCH = 64
"""Images that are calibrated, tested and timed at a time."""
FLOATING = {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "Softmax"}
"""Operators that stay in float32: their weights have no channels in a row, or their outputs need more levels."""
REPEATS = 50
"""Number of times that a batch is timed."""


class MeasuredExport(NamedTuple):
    """An ONNX file in ONNX Runtime on this processor."""

    file: Path
    """The path of the file."""
    size: int
    """The size of the file in bytes."""
    test_top1: float
    """Top-1 on all test images, in percent."""
    milliseconds: float
    """The median time of a batch of one image."""
    images_per_second: float
    """The speed in batches of `BATCH` images, by their median time."""


def quantise_student(
    out: Path | str,
    *,
    weights: Weights = "last",
    inside: Inside | None = None,
    data_root: Path | str | None = None,
    dataset: Any = None,
    model: NetworkOrFactory | None = None,
) -> list[MeasuredExport]:
    """Write student-int8.onnx beside the student.onnx of `export_student`, and measure both.

    ONNX Runtime quantises weights by channel, and activations by their largest and smallest values on 256 training
    images. The file says of itself what the other one does, with its own test accuracy.

    Args:
        out, weights, inside, data_root, dataset, model: as for `export_student`, whose ONNX file is there.

    Returns:
        The figures of both files: of float32, and of int8.

    Raises:
        UserError: as `export_student`; and where the data set is not the one that the run was trained on.
    """
    inside = inside or Inside()
    folder = RunFolder(Path(out))
    folder.require_run()
    with folder.lock():
        run = load_run(out, model=model)
        classifier, path = run.classifier(weights), run.weights_file(weights)
        source, target = path.with_suffix(".onnx"), path.with_name(f"{path.stem}-int8.onnx")
        opened = open_dataset(run.recipe.with_data_root(data_root).data, pairs=dataset)
        refuse_other_data(opened, classifier.trained, f"the run in {out}")
        prepare = partial(take_in, classifier=classifier, inside=inside)
        exact = read_bytes(source, "the ONNX file", f"write it again with tfkd-fast export {shlex.quote(str(out))}")
        try:
            rough = _quantise(exact, prepare(choose_training_images(opened, CALIBRATED_ON)), path)
            sessions = [open_onnx(content) for content in (exact, rough)]
        except ImportError:
            raise UserError(ONNX_NEEDS) from None
        accuracies = _test_top1(sessions, opened.read_test(), prepare)
        description = describe_export(run, weights, classifier, inside)
        description["metrics"] = to_json({"test_top1": accuracies[1]})
        description["arithmetic"] = f"int8, ranges of activations of {CALIBRATED_ON} training images"
        rough = describe(rough, description)
        write_bytes(target, rough)
        example = prepare(choose_training_images(opened, BATCH))
    return [
        MeasuredExport(
            file,
            len(content),
            accuracy,
            1000 * _seconds(session, example[:1]),
            len(example) / _seconds(session, example),
        )
        for file, content, accuracy, session in zip((source, target), (exact, rough), accuracies, sessions, strict=True)
    ]


def _quantise(exact: bytes, images: Tensor, path: Path) -> bytes:
    """The bytes of an ONNX file with 8 bits for weights and activations, whose ranges are found on images (N,C,H,W)."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.registry import QDQRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
        """The images in batches."""

        def __init__(self) -> None:
            self._batches = iter(images.split(BATCH))

        def get_next(self) -> dict[str, Any] | None:
            """Return the next batch by the name of the input; None after the last one."""
            batch = next(self._batches, None)
            return None if batch is None else {IMAGES: batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:  # the tools of ONNX Runtime go from file to file
        prepared, written = str(Path(folder, "prepared.onnx")), Path(folder, "written.onnx")
        try:
            quant_pre_process(onnx.load_from_string(exact), prepared)
            quantization.quantize_static(
                prepared,
                str(written),
                Calibration(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=sorted(QDQRegistry.keys() - FLOATING),
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        except Exception as error:  # whatever these tools raise for layers of others
            explain(f"ONNX Runtime cannot quantise the network of {path}", error)
        return written.read_bytes()


def _test_top1(sessions: Sequence[Any], images: ImageSet, prepare: Callable[[Tensor], Tensor]) -> list[float]:
    """Top-1 of ONNX files on a set of images, in percent; images are read once."""
    right = [0] * len(sessions)
    for places in torch.arange(len(images)).split(BATCH):
        batch = images.subset(places)
        inputs = prepare(batch.all_images())
        for number, session in enumerate(sessions):
            right[number] += int((run_onnx(session, inputs).argmax(1) == batch.labels).sum())
    return [100 * count / len(images) for count in right]


def _seconds(session: Any, images: Tensor) -> float:
    """The median time of a batch of images."""
    feed = {IMAGES: images.numpy()}
    return median(timeit.repeat(lambda: session.run(None, feed), repeat=REPEATS, number=1))
