"""The model card of a finished run: Markdown below YAML, as the Hugging Face Hub reads a README.md.

The YAML is made of JSON texts, which YAML contains, so that nothing that a data set or a class is called can be read as
something else; in the Markdown, too, names are text.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tfkd_fast.errors import printable
from tfkd_fast.events import StudentExamined
from tfkd_fast.methods import METHODS
from tfkd_fast.models import MODELS, imports_code
from tfkd_fast.report.format import as_number, count_text, decimals, standard_error
from tfkd_fast.report.run import RunRecord
from tfkd_fast.report.testing import hardest_first
from tfkd_fast.report.words import measurement_words
from tfkd_fast.runs.folder import LIBRARY
from tfkd_fast.runs.stored import StoredRun
from tfkd_fast.runs.student import StudentHeader
from tfkd_fast.strict_json import to_json

NOT_ON_THE_HUB = {
    "digits": "the digits of scikit-learn",
    "folder": "a folder of images",
    "npz": "the images of an .npz file",
    "python": "the images of a program",
}
"""Data sets that the Hub cannot link to, with what they are called instead: most of their names say how they are read,
and not which they are."""
MOST_CLASSES = 100
"""Classes whose accuracies a card names, and whose names it lists."""
FIGURES = {
    "top1": ("top-1, %", 2),
    "top5": ("top-5, %", 2),
    "nll": ("NLL, nats", 3),
    "calibrated_nll": ("calibrated NLL, nats", 3),
    "ece": ("ECE", 3),
}
"""The figures of a card by their names in the summary, with their headings and digits."""
CLASSES = {"top1": 2, "top5": 6}
"""The fewest classes with which a figure says something."""
ACCURACIES = {"top1": ("accuracy", "Top-1 accuracy"), "top5": ("accuracy_top5", "Top-5 accuracy")}
"""Figures of the model index, with the types and names that they have there."""


def model_card(run: StoredRun, record: RunRecord, header: StudentHeader, recipe: str, name: str, licence: str) -> str:
    """The text of a card.

    Args:
        run: the run, which is finished.
        record: the same run, as pages read it.
        header: the header of its student.
        recipe: the recipe that is shown, TOML.
        name: what others load it by: "OWNER/NAME" on the Hub, or "./NAME" for a folder.
        licence: the licence of the weights, by its name on the Hub.
    """
    sections = [
        _introduction(record, header, name, licence),
        _figures(run),
        _classes(record.examination, header.classes),
        _data(record, header),
        ["## How it was measured", "", *(f"* {_text(line)}" for line in measurement_words(record))],
        _use(name, header, [path.name for path in sorted(run.path.glob("*.onnx"))]),
        ["## Recipe", "", *_fenced("toml", recipe)],
    ]
    body = "\n\n".join("\n".join(lines) for lines in sections if lines)
    return f"---\n{_front_matter(record, name, licence)}---\n\n{body}\n"


def _front_matter(record: RunRecord, name: str, licence: str) -> str:
    start = record.start
    values: dict[str, Any] = {
        "license": licence,
        "library_name": LIBRARY,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "knowledge-distillation", "tfkd-fast", start.method, _short(start.model)],
        "datasets": [] if start.dataset in NOT_ON_THE_HUB else [start.dataset.removeprefix("hf/")],
        "metrics": ["accuracy"],
    }
    lines = [f"{key}: {_json(value)}" for key, value in values.items() if value]
    if results := list(_results(record)):
        lines += ["model-index:", f"- name: {_json(name.rpartition('/')[2])}", "  results:"]
        lines += [f"  - {_json(result)}" for result in results]
    return "\n".join(lines) + "\n"


def _results(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The entries of the model index, whose accuracies are fractions, as those of the Hub are."""
    summary = record.summary or {}
    for part, split in (("test", "test"), ("holdout", "held out of training")):
        metrics = [
            {"type": kind, "name": title, "value": round(as_number(summary[f"{part}_{name}"]) / 100, 6)}
            for name, (kind, title) in ACCURACIES.items()
            if math.isfinite(as_number(summary.get(f"{part}_{name}"))) and len(record.start.classes) >= CLASSES[name]
        ]
        if metrics:
            yield {
                "task": {"type": "image-classification", "name": "Image classification"},
                "dataset": {"type": record.start.dataset, "name": record.start.dataset, "split": split},
                "metrics": metrics,
            }


def _introduction(record: RunRecord, header: StudentHeader, name: str, licence: str) -> list[str]:
    start = record.start
    method = f"{start.method} ({METHODS[start.method].summary})"
    images = NOT_ON_THE_HUB.get(start.dataset, start.dataset)
    channels, height, width = header.image_shape
    teachers = f", taught by {', '.join(start.teachers)}" if start.teachers else ""
    lines = [
        f"# {_text(name.removeprefix('./'))}",
        "",
        f"An image classifier: {_text(_short(start.model))} of width {header.width:g} with {start.parameters:,} "
        f"parameters, trained on {_text(images)} by {_text(method + teachers)} for {start.epochs:,} epochs with "
        f"{_text('tfkd_fast')} {start.version}. It tells {len(header.classes)} classes apart in images of {width}x"
        f"{height} pixels and {channels} {'channel' if channels == 1 else 'channels'}.",
    ]
    if licence == "unknown":
        lines += ["", "No licence was named for these weights."]
    return lines


def _short(network: str) -> str:
    """The name of a network without the folder of its file, which others do not have."""
    return network.rpartition("/")[2] if imports_code(network) else network


def _figures(run: StoredRun) -> list[str]:
    """Held-out and test figures of all weights of the run, and the standard error that the test images alone make."""
    files = {"last": "last epoch", "best": "best epoch on held-out images", "ema": "moving average of the weights"}
    rows = []
    for weights, title in files.items():
        found = run.metrics(weights)  # type: ignore[arg-type]
        for part, words in (("holdout", "held-out"), ("test", "test")):
            figures = [decimals(found.get(f"{part}_{key}"), digits) for key, (_, digits) in FIGURES.items()]
            if math.isfinite(as_number(found.get(f"{part}_top1"))):
                rows.append([title, words, *figures])
    if not rows:
        return []
    lines = ["## Figures", "", *_table(["weights", "images", *(head for head, _ in FIGURES.values())], rows)]
    summary = run.summary or {}
    if images := summary.get("test_images"):
        error = decimals(standard_error(as_number(summary.get("test_top1")), images))
        lines += [
            "",
            f"The standard error of the test top-1 of the last epoch is {error} points, by {images:,} images.",
        ]
    return lines


def _classes(examination: StudentExamined | None, classes: Sequence[str]) -> list[str]:
    """Test accuracies of the classes, the lowest first."""
    if examination is None:
        return []
    labels = hardest_first(examination)
    rows = [
        [classes[label], count_text(examination.class_images[label]), decimals(examination.class_top1[label])]
        for label in labels[:MOST_CLASSES]
    ]
    scope = f"the {MOST_CLASSES} hardest of {len(labels)}" if len(labels) > MOST_CLASSES else "the hardest first"
    return [f"## Test accuracy by class, {scope}", "", *_table(["class", "test images", "top-1, %"], rows)]


def _data(record: RunRecord, header: StudentHeader) -> list[str]:
    start, data = record.start, record.recipe.get("data", {})
    summary = record.summary or {}
    rule = (
        f"The share data.holdout = {header.holdout:g} of the training images of each class is held out"
        f"{f' (fold {header.fold} of it)' if header.fold else ''}, drawn by a "
        "seed that is the same for all runs; images that a data set has for that take their place."
        if start.holdout_images
        else "No images were held out."
    )
    names = ", ".join(header.classes[:MOST_CLASSES]) + (", ..." if len(header.classes) > MOST_CLASSES else "")
    lines = [
        "## Data",
        "",
        f"* Data set: {_text(start.dataset)}; {start.train_images:,} images to fit, {start.holdout_images:,} held out, "
        f"{count_text(summary['test_images']) + ' to test' if summary.get('test_images') else 'none tested on'}.",
        f"* Held-out rule: {rule}",
        f"* Seed of the run: {start.seed}.",
        f"* Normalisation, pixels 0 to 1: mean {_numbers(header.mean)}, deviation {_numbers(header.std)}.",
        f"* Classes, in the order of the logits: {_text(names)}.",
    ]
    if data.get("classes") or data.get("per_class"):
        lines.insert(3, "* It is a part of the data set: data.classes or data.per_class in the recipe below.")
    for part, fingerprint in (("training", header.training_data), ("test", header.test_data)):
        if fingerprint:
            lines.append(f"* Fingerprint of the {part} images: {_text(fingerprint)}")
    return lines


def _use(name: str, header: StudentHeader, exports: Sequence[str]) -> list[str]:
    """How the weights are loaded, with this package and without it."""
    with_us = [
        "import tfkd_fast",
        "",
        f"run = tfkd_fast.from_pretrained({_json(name)})",
        "classifier = run.classifier()  # pixels in, logits out; run.student() takes normalised images",
        'pixels = classifier.read(["image.png"])  # files of any size: (B,C,H,W) uint8',
        "probabilities = classifier.probabilities(pixels)",
        "name = classifier.classes[probabilities[0].argmax()]",
    ]
    without = [
        "import json, safetensors.torch, torch",
        "",
        'path = "student.safetensors"',
        'header = json.loads(safetensors.safe_open(path, "pt").metadata()["student"])  # classes, mean, std, ...',
        "weights = safetensors.torch.load_file(path)",
        'mean, std = (torch.tensor(header[name]).view(-1, 1, 1) for name in ("mean", "std"))',
        "# The network takes (pixels / 255 - mean) / std, (B,C,H,W) float32.",
    ]
    network = _network(header.name)
    lines = ["## Use", "", "With tfkd_fast; `tfkd_fast.load_run` reads a folder of these files, too:", ""]
    lines += [*_fenced("python", "\n".join(with_us)), "", "Without it, by safetensors:", ""]
    lines += _fenced("python", "\n".join([*without, *network]))
    if header.name in MODELS:
        lines += ["", "The layers are those of `tfkd_fast.models`; the names of the tensors are those of its networks."]
    if exports:
        lines += ["", f"{', '.join(map(_text, exports))}: the same for ONNX Runtime, with classes in the metadata."]
    return lines


def _network(name: str) -> list[str]:
    """Lines that make a network of another package and give it the weights; none for other networks."""
    package, _, rest = name.partition("/")
    classes = 'num_classes=len(header["classes"])'
    makers = {
        "torchvision": f"torchvision.models.get_model({_json(rest)}, weights=None, {classes})",
        "timm": f'timm.create_model({_json(rest)}, {classes}, in_chans=header["image_shape"][0])',
    }
    if package not in makers or ":" in name:
        return []
    return [f"\nimport {package}", f"\nnetwork = {makers[package]}.eval()", "network.load_state_dict(weights)"]


# Text that Markdown and YAML take for text.


def _json(value: Any) -> str:
    """A value as JSON that is YAML, too: characters beyond ASCII stay, since YAML knows no pairs of surrogates."""
    if isinstance(value, str):
        value = printable(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json(key)}: {_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    return to_json(value, escapes=False)


def _text(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!$])", r"\\\1", printable(text))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell if cell == "---" else _text(cell) for cell in line) + " |" for line in lines]


def _fenced(language: str, code: str) -> list[str]:
    """A block of code, between fences that it does not have itself."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return [fence + language, code.rstrip("\n"), fence]


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
