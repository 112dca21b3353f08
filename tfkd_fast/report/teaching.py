"""Charts of the weights of teachers and of pathways. A chart is None for a run that has no such events."""

import math
from operator import itemgetter

import numpy as np
from matplotlib.figure import Figure

from tfkd_fast.events import PathwaysWeighed
from tfkd_fast.report.drawing import (
    LIGHT,
    Chart,
    describe_curve,
    draw_chart,
    epoch_axis,
    fit_axis,
    heat_map,
    legend_above,
    markers,
    several_lines,
)
from tfkd_fast.report.run import RunRecord

MOST_PATHWAYS = 36
"""The most rows of the heat map."""


def teacher_chart(run: RunRecord) -> Chart | None:
    """The weight of each teacher for its predictions and for its features, over epochs."""
    if not run.teacher_weights:
        return None
    epochs = [record.epoch for record in run.teacher_weights]
    names = run.teacher_weights[0].names
    of_logits = np.array([record.logit_weights for record in run.teacher_weights]).T
    of_features = np.array([record.feature_weights for record in run.teacher_weights]).T
    panels = {"predictions": of_logits, "features": of_features}

    def paint(figure: Figure) -> None:
        stack = figure.subplots(len(panels), 1, sharex=True, sharey=True)
        for axes, (title, lines) in zip(stack, panels.items(), strict=True):
            several_lines(axes, epochs, names, lines)
            axes.axhline(1 / len(names), color=LIGHT["muted"], linewidth=0.8, label="equal share", zorder=1)
            axes.set_title(f"weights of {title}")
        epoch_axis(stack[-1])
        fit_axis(*stack, zero=True)
        legend_above(stack[0])

    courses = [
        f"{name} {describe_curve(epochs, weights)}"
        for lines in panels.values()
        for name, weights in zip(names, lines.tolist(), strict=True)
    ]
    half = len(names)
    label = (
        f"Line charts of the teachers' weights. Predictions: {'; '.join(courses[:half])}. "
        f"Features: {'; '.join(courses[half:])}."
    )
    last = run.teacher_weights[-1]
    note = (
        "Means over the images of each epoch; an image has weights of its own, which add up to 1. "
        f"What weighs them was updated {_times(last.updates)}"
        + (f", and {_times(last.skipped)} an update was skipped." if last.skipped else ".")
    )
    return draw_chart("teachers", title="Weights of the teachers", label=label, note=note, height=4.4, paint=paint)


def pathway_chart(run: RunRecord) -> Chart | None:
    """The weight of each pathway over epochs, and of all together."""
    rows = select_pathways(run)
    if not rows:
        return None
    epochs = [record.epoch for record in run.pathway_weights]
    names = run.pathway_weights[0].names
    first, last = epochs[0], epochs[-1]
    weights = np.full((len(names), last - first + 1), np.nan)
    for record in run.pathway_weights:
        weights[:, record.epoch - first] = record.weights
    totals = [math.fsum(record.weights) for record in run.pathway_weights]
    rest = [number for number in range(len(names)) if number not in rows]
    extent = (first - 0.5, last + 0.5)
    inches = 0.3 + 0.16 * len(rows)

    def paint(figure: Figure) -> None:
        grid = figure.add_gridspec(2, 2, width_ratios=(40, 1), height_ratios=(inches, 1.0))
        each, total = (figure.add_subplot(grid[row, 0]) for row in range(2))
        heat_map(each, figure.add_subplot(grid[0, 1]), weights[rows], extent, "weight")
        each.set_yticks(np.arange(len(rows)) + 0.5, [names[number] for number in rows])
        total.axhline(0, color=LIGHT["muted"], linewidth=0.6)
        total.plot(epochs, totals, color=LIGHT["blue"], **markers(epochs))
        total.set_title("all together")
        each.sharex(total)
        each.tick_params(labelbottom=False)
        total.set_xlim(*extent)
        epoch_axis(total)

    label = (
        f"Heat map of the weights of {len(rows)} pathways, epochs {first} to {last}, over a curve of their sum: "
        f"{describe_curve(epochs, totals)}. In the last of these epochs: {pathway_words(run.pathway_weights[-1])}."
    )
    note = (
        "A name tells the stage of the teacher, the stage of the student that it teaches, both counted from 0 with "
        "the stem, and what lies between. Weights at the start of each epoch; empty where a pathway is not computed."
    )
    if rest:
        most = np.nan_to_num(weights[rest]).max()
        why = f"of at most {most:.2g}" if most else "as never used"
        note += f" Left out, {why}: {len(rest)}."
    height = 1.6 + inches
    return draw_chart("pathways", title="Weights of the pathways", label=label, note=note, height=height, paint=paint)


def select_pathways(run: RunRecord) -> list[int]:
    """Select the pathways that ever had a weight, of very many those that had the most: their numbers in the order of
    the log."""
    if not run.pathway_weights:
        return []
    peaks = np.nan_to_num([record.weights for record in run.pathway_weights]).max(axis=0)
    strongest = np.argsort(-peaks, kind="stable")[:MOST_PATHWAYS]
    return sorted(int(number) for number in strongest if peaks[number] > 0)


def pathway_words(record: PathwaysWeighed, most: int = 3) -> str:
    """The strongest pathways of an epoch."""
    weights = sorted(zip(record.names, record.weights, strict=True), key=itemgetter(1), reverse=True)
    used = [f"{name} {weight:.3f}" for name, weight in weights if weight > 0]
    return f"{len(used)} of {len(weights)} in use" + (f", the strongest {', '.join(used[:most])}" if used else "")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
