"""Charts of the test of a finished student: by class, by pair of classes, and by confidence."""

import math

import numpy as np
from matplotlib.figure import Figure

from tfkd_fast.errors import printable
from tfkd_fast.events import StudentExamined
from tfkd_fast.report.drawing import LIGHT, Chart, draw_chart, heat_map
from tfkd_fast.report.format import decimals

MOST_NAMED_CLASSES = 24
"""The most classes of a chart that names each."""

LONGEST_NAME = 18
"""Characters of the name of a class in a chart."""


def class_chart(test: StudentExamined, names: tuple[str, ...]) -> Chart | None:
    """The top-1 accuracy of each class, the least first."""
    order = hardest_first(test)
    top1 = [test.class_top1[label] for label in order]
    named = len(order) <= MOST_NAMED_CLASSES

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(order))
        axes.hlines(places, 0, top1, color=LIGHT["grid"], linewidth=2.0 if named else 0.6)
        axes.plot(top1, places, "o", color=LIGHT["blue"], markersize=4.5 if named else 2.0)
        axes.set_xlim(0, 102)
        axes.set_xlabel("top-1, %")
        if named:
            axes.set_yticks(places, [_short(names[label]) for label in order])
        else:
            axes.set_ylabel("classes, the hardest below")
            axes.set_yticks([])
        axes.grid(visible=False, axis="y")

    label = f"Top-1 accuracy of {len(order)} classes"
    if order:
        label += f", from {decimals(top1[0])} % ({names[order[0]]}) to {decimals(top1[-1])} % ({names[order[-1]]})"
    note = f"Of {sum(test.class_images):,} test images, those of each class that the student classifies rightly."
    height = 0.9 + (0.2 * len(order) if named else 2.4)
    return draw_chart("classes", title="Accuracy by class", label=f"{label}.", note=note, height=height, paint=paint)


def confusion_chart(test: StudentExamined, names: tuple[str, ...]) -> Chart | None:
    """The share of each class's images by the class that was predicted; None for more classes than can be named."""
    classes = len(names)
    if classes > MOST_NAMED_CLASSES:
        return None
    shares = np.full((classes, classes), math.nan)
    for place, (images, top1) in enumerate(zip(test.class_images, test.class_top1, strict=True)):
        if images:
            shares[place], shares[place, place] = 0.0, top1
    for pair in test.confusions:
        shares[pair.label, pair.prediction] = 100 * pair.images / test.class_images[pair.label]

    def paint(figure: Figure) -> None:
        axes, scale = figure.subplots(1, 2, width_ratios=(30, 1))
        heat_map(axes, scale, shares, (0, classes), "% of the class")
        places = np.arange(classes) + 0.5
        axes.set_yticks(places, [_short(name) for name in names])
        axes.set_xticks(places, [_short(name) for name in names], rotation=90)
        axes.set_ylabel("label")
        axes.set_xlabel("prediction")

    worst = ", ".join(
        f"{names[pair.label]} for {names[pair.prediction]} {pair.images} times" for pair in test.confusions[:3]
    )
    label = f"Confusion matrix of {classes} classes. Most often mistaken: {worst or 'none'}."
    note = (
        "Each row is a class, and the cells are shares of its images by what was predicted; empty where there are none."
    )
    height = 1.6 + min(3.6, 0.24 * classes)
    return draw_chart("confusions", title="Confusion matrix", label=label, note=note, height=height, paint=paint)


def reliability_chart(test: StudentExamined) -> Chart | None:
    """Accuracy over confidence, bin by bin, and how many images have that confidence."""
    filled = [each for each in test.bins if each.images and math.isfinite(each.confidence + each.top1)]
    if not filled:
        return None
    images = sum(each.images for each in filled)
    edges = 100 * np.arange(len(test.bins)) / len(test.bins)

    def paint(figure: Figure) -> None:
        curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        curve.plot([0, 100], [0, 100], color=LIGHT["faint"], linestyle=":", linewidth=1.0)
        curve.plot(
            [each.confidence for each in filled],
            [each.top1 for each in filled],
            "o-",
            color=LIGHT["blue"],
            markersize=3.5,
        )
        curve.set_ylim(-2, 102)
        curve.set_ylabel("top-1, %")
        shares = [100 * each.images / images for each in test.bins]
        counts.bar(edges, shares, width=100 / len(test.bins), align="edge", color=LIGHT["faint"], linewidth=0)
        counts.set_ylabel("images, %")
        counts.set_xlabel("confidence, %")
        counts.set_xlim(0, 100)

    gaps = [each.top1 - each.confidence for each in filled]
    weights = [each.images / images for each in filled]
    mean = sum(weight * gap for weight, gap in zip(weights, gaps, strict=True))
    how = "more sure than right" if mean < 0 else "less sure than right"
    label = f"Reliability diagram in {len(test.bins)} bins: on average the student is {abs(mean):.1f} points {how}."
    note = (
        "On the dotted line, of the images that the student gives a probability of 70 %, 70 % are classified rightly; "
        f"below it the student is too sure. On average it is {abs(mean):.1f} points {how}."
    )
    return draw_chart("reliability", title="Reliability", label=label, note=note, height=3.6, paint=paint)


def hardest_first(test: StudentExamined) -> list[int]:
    """The classes that have images, the least accurate first."""
    known = [label for label, images in enumerate(test.class_images) if images]
    return sorted(known, key=lambda label: test.class_top1[label])


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
