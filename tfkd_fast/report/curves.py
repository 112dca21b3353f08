"""Curves of training over epochs. Each function returns None where the run has nothing for it to show."""

import math
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tfkd_fast.events import EpochEnded
from tfkd_fast.report.drawing import (
    LIGHT,
    UNNAMED,
    Chart,
    describe_curve,
    draw_chart,
    epoch_axis,
    fit_axis,
    legend_above,
    markers,
    several_lines,
)
from tfkd_fast.report.run import RunRecord


def accuracy_chart(run: RunRecord) -> Chart | None:
    """Training and held-out top-1 of the student, the other candidates' held-out top-1 behind it."""
    if not run.student:
        return None
    epochs = [record.epoch for record in run.student]
    train = [record.train_top1 for record in run.student]
    holdout = [_holdout_top1(record) for record in run.student]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(epochs, train, color=LIGHT["vermilion"], linestyle="--", label="training", **markers(epochs))
        if run.start.holdout_images:
            axes.plot(epochs, holdout, color=LIGHT["blue"], label="held-out", **markers(epochs))
        _draw_rivals(axes, run, _holdout_top1)
        _draw_drops(axes, run)
        _draw_grades(run, axes)
        axes.set_ylabel("top-1, %")
        epoch_axis(axes)
        legend_above(axes)

    label = f"Line chart of top-1 accuracy. Training: {describe_curve(epochs, train, ' %')}."
    if run.start.holdout_images:
        label += f" Held-out: {describe_curve(epochs, holdout, ' %')}."
    note = "Training accuracy is counted in passing, on augmented images, by the student as it was at each step."
    return draw_chart("accuracy", title="Accuracy", label=label, note=note, height=3.3, paint=paint)


def loss_chart(run: RunRecord) -> Chart | None:
    """Training loss, held-out NLL and calibrated held-out NLL of the student."""
    if not run.student:
        return None
    epochs = [record.epoch for record in run.student]
    train = [record.train_loss for record in run.student]
    nll = [record.holdout.nll if record.holdout else math.nan for record in run.student]
    calibrated = [_calibrated_nll(record) for record in run.student]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(epochs, train, color=LIGHT["vermilion"], linestyle="--", label="training", **markers(epochs))
        if run.start.holdout_images:
            axes.plot(epochs, nll, color=LIGHT["green"], linestyle=":", label="held-out", **markers(epochs))
            axes.plot(epochs, calibrated, color=LIGHT["blue"], label="calibrated", **markers(epochs))
        _draw_rivals(axes, run, _calibrated_nll)
        _draw_drops(axes, run)
        _draw_grades(run, axes)
        fit_axis(axes, log=True)
        axes.set_ylabel("nats")
        epoch_axis(axes)
        legend_above(axes)

    label = f"Line chart of losses. Training: {describe_curve(epochs, train)}."
    if run.start.holdout_images:
        label += f" Held-out NLL: {describe_curve(epochs, nll)}. Calibrated: {describe_curve(epochs, calibrated)}."
    note = (
        "Training: what was minimised, all its terms together, so it moves with the target as well. "
        "Held-out: NLL, as it is and after temperature calibration."
    )
    return draw_chart("loss", title="Loss", label=label, note=note, height=3.3, paint=paint)


def terms_chart(run: RunRecord) -> Chart | None:
    """The terms of the student's training loss over epochs; None where the loss has one term only."""
    names = list(dict.fromkeys(name for record in run.student for name in record.terms))
    if len(names) < 2:
        return None
    epochs = [record.epoch for record in run.student]
    curves = [[record.terms.get(name, math.nan) for record in run.student] for name in names]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        several_lines(axes, epochs, names, curves)
        fit_axis(axes)
        _draw_grades(run, axes)
        axes.set_ylabel("part of the loss")
        epoch_axis(axes)
        legend_above(axes)

    words = [f"{name} {describe_curve(epochs, values)}" for name, values in zip(names, curves, strict=True)]
    label = f"Line chart of the terms of the training loss: {'; '.join(words)}."
    note = "What each term adds to the training loss, its weight included, as a mean over the images of the epoch."
    return draw_chart("terms", title="Terms of the loss", label=label, note=note, height=2.6, paint=paint)


def calibration_chart(run: RunRecord) -> Chart | None:
    """Held-out calibration error, and the temperature that calibrates."""
    judged = [(record.epoch, record.holdout) for record in run.student if record.holdout]
    if not judged:
        return None
    epochs = [epoch for epoch, _ in judged]
    ece = [holdout.ece for _, holdout in judged]
    temperature = [holdout.temperature for _, holdout in judged]

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, sharex=True)
        _draw_grades(run, top, bottom)
        top.plot(epochs, ece, color=LIGHT["blue"], **markers(epochs))
        fit_axis(top, zero=True)
        top.set_ylabel("ECE")
        bottom.axhline(1, color=LIGHT["muted"], linewidth=0.8)
        bottom.plot(epochs, temperature, color=LIGHT["purple"], **markers(epochs))
        fit_axis(bottom, log=True)
        bottom.set_ylabel("temperature")
        epoch_axis(bottom)

    label = (
        f"Line charts of the held-out expected calibration error: {describe_curve(epochs, ece)}; "
        f"and of the calibrating temperature: {describe_curve(epochs, temperature)}."
    )
    note = "Expected calibration error (15 bins), and the temperature that calibrates: above 1 means over-confident."
    return draw_chart("calibration", title="Held-out calibration", label=label, note=note, height=3.0, paint=paint)


def pace_chart(run: RunRecord) -> Chart | None:
    """Learning rate and training speed."""
    if not run.student:
        return None
    epochs = [record.epoch for record in run.student]
    rates = [record.learning_rate for record in run.student]
    speeds = [record.images_per_second for record in run.student]

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, sharex=True)
        _draw_grades(run, top, bottom)
        top.plot(epochs, rates, color=LIGHT["purple"], drawstyle="steps-mid", **markers(epochs))
        fit_axis(top, log=True)
        top.set_ylabel("learning rate")
        bottom.plot(epochs, speeds, color=LIGHT["green"], **markers(epochs))
        fit_axis(bottom, zero=True)
        bottom.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        bottom.set_ylabel("images/s")
        epoch_axis(bottom)

    label = (
        f"Line charts of the learning rate: {describe_curve(epochs, rates)}; "
        f"and of the training speed in images a second: {describe_curve(epochs, speeds)}."
    )
    note = "The rate at the start of each epoch, and the speed of one candidate in training, without evaluation."
    return draw_chart("pace", title="Learning rate and speed", label=label, note=note, height=3.0, paint=paint)


def learning_rate_drops(run: RunRecord) -> list[int]:
    """Epochs that start at a lower rate after a plateau: the milestones of a step schedule, none of a smooth one."""
    rates = [record.learning_rate for record in run.student]
    return [
        run.student[i].epoch for i in range(2, len(rates)) if rates[i] < rates[i - 1] and rates[i - 1] == rates[i - 2]
    ]


def _draw_drops(axes: Axes, run: RunRecord) -> None:
    for number, epoch in enumerate(learning_rate_drops(run)):
        label = UNNAMED if number else "rate drops"
        axes.axvline(epoch - 0.5, color=LIGHT["muted"], linewidth=0.8, linestyle="--", label=label, zorder=1)


def groups_chart(run: RunRecord) -> Chart | None:
    """Held-out accuracy of each group of classes that a grade added; None where there are no groups."""
    if not run.groups:
        return None
    epochs = [record.epoch for record in run.groups]
    courses = list(zip(*(record.holdout_top1 for record in run.groups), strict=True))
    names = [f"group {number}" for number in range(1, len(courses) + 1)]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        several_lines(axes, epochs, names, courses)
        axes.set_ylabel("held-out top-1, %")
        epoch_axis(axes)
        _draw_grades(run, axes)
        legend_above(axes)

    words = [f"{name} {describe_curve(epochs, accuracies)}" for name, accuracies in zip(names, courses, strict=True)]
    label = f"Line chart of held-out accuracy by group: {'; '.join(words)}."
    note = "Means over the classes of each group, from the grade that brings it. What falls is forgotten."
    return draw_chart("groups", title="Groups of classes", label=label, note=note, height=2.6, paint=paint)


def _draw_grades(run: RunRecord, named: Axes, *others: Axes) -> None:
    """Where each grade begins, on axes that share their epochs; the names stand above the curves of the first."""
    if run.grades:
        named.set_ymargin(0.18)
    for grade in run.grades:
        start = grade.first_epoch - 0.5
        wide = 7 * grade.epochs >= run.start.epochs
        for axes in (named, *others):
            axes.axvline(start, color=LIGHT["muted"], linewidth=0.8, label=UNNAMED, zorder=1)
        named.annotate(
            f"grade {grade.grade}" if wide else str(grade.grade),
            (start, 1),
            xycoords=named.get_xaxis_transform(),
            xytext=(3, 0),
            textcoords="offset points",
            va="top",
            color=LIGHT["muted"],
        )


def _draw_rivals(axes: Axes, run: RunRecord, value: Callable[[EpochEnded], float]) -> None:
    """Draw the other candidates behind the student, as one path with gaps between their tracks."""
    points = [point for track in run.rivals for point in [*((e.epoch, value(e)) for e in track), (math.nan, math.nan)]]
    if any(math.isfinite(y) for _, y in points):
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=LIGHT["faint"], linewidth=0.7, label="others", zorder=1.5)


def _holdout_top1(record: EpochEnded) -> float:
    return record.holdout.top1 if record.holdout else math.nan


def _calibrated_nll(record: EpochEnded) -> float:
    return record.holdout.calibrated_nll if record.holdout else math.nan
