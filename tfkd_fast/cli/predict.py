"""`predict`: the likeliest classes of image files, as JSON or CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from tfkd_fast.errors import printable
from tfkd_fast.runs.predictions import Prediction
from tfkd_fast.runs.stored import StoredRun, Weights
from tfkd_fast.strict_json import to_json

DIGITS = 6
"""Digits behind the point that a probability is printed with: predictions are no exacter than float32."""


def as_json(run: StoredRun, weights: Weights, predictions: Sequence[Prediction]) -> str:
    """The predictions and what they were made with, as an indented JSON object."""
    values = {"run": str(run.path), "weights": run.weights_file(weights).name, "temperature": run.temperature(weights)}
    return to_json(values | {"predictions": list(map(_entry, predictions))}, indent=2)


def as_csv(predictions: Sequence[Prediction]) -> str:
    """A row for each image below one of headings, as RFC 4180 has it; the second class has the columns class_2, ...

    Control characters in the name of a file are escaped, so that every image has one line.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    suffixes = ["", *(f"_{rank}" for rank in range(2, len(predictions[0].labels) + 1))]
    writer.writerow(["image", *(name + suffix for suffix in suffixes for name in ("class", "label", "probability"))])
    for prediction in predictions:
        writer.writerow(
            [printable(str(prediction.image)), *(value for each in _ranked(prediction) for value in each.values())]
        )
    return written.getvalue().removesuffix("\n")


def _entry(prediction: Prediction) -> dict[str, Any]:
    likeliest, *others = _ranked(prediction)
    return {"image": str(prediction.image)} | likeliest | ({"next": others} if others else {})


def _ranked(prediction: Prediction) -> list[dict[str, Any]]:
    """The classes of an image, the likeliest first."""
    columns = zip(prediction.classes, prediction.labels, prediction.probabilities, strict=True)
    return [{"class": name, "label": label, "probability": round(value, DIGITS)} for name, label, value in columns]
