"""Charts of rows beside each other. Each function returns None where nothing is known of what it shows."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from rich.cells import cell_len, set_cell_size

from tfkd_fast.report.drawing import (
    LIGHT,
    LINES,
    UNNAMED,
    Chart,
    describe_curve,
    draw_chart,
    epoch_axis,
    fit_axis,
    heat_limits,
    legend_above,
    limits_without_outliers,
    log_locator,
    markers,
)
from tfkd_fast.report.steering import draw_target
from tfkd_fast.study.courses import Course, CoursesByRow, mean_course
from tfkd_fast.study.results import CONFIDENCE, Difference, Line, Mean, StudyResults, difference_text

LONGEST_NAME = 54
"""Columns of a name in a chart, as many as its width has; the table has the whole name."""
BASELINE = "vermilion"
"""The colour of the baseline in every chart."""
MOST_LINES = 8
"""Rows that get a line of their own in a chart: more could not be told apart."""
MOST_TARGETS = 6
"""Rows whose targets are shown beside each other."""
ROW_HEIGHT = 0.34
"""Inches that a row and its name take."""
OUTLYING = 3.0
"""How far from the others, in their range, figures of rows are outliers."""
WIDEST_INTERVAL = 1.0
"""How far intervals widen an axis at each end, as a share of the range of the figures themselves: an interval of two
seeds may be longer than all figures are apart."""


@dataclass(frozen=True)
class DotRow:
    """A row of dots under its name, with their mean and its interval."""

    name: str
    dots: Sequence[float]
    mean: Mean | Difference | None
    colour: str


@dataclass(frozen=True)
class Panel:
    """Rows of dots over one axis."""

    title: str
    rows: Sequence[DotRow]
    reference: float | None = None
    """Where a line stands that all rows are to be compared with."""
    legend: Mapping[str, str] = field(default_factory=dict)
    """What a colour means, by the colour."""

    higher_is_better: bool = True

    def limits(self) -> tuple[float, float] | None:
        """The ends of the axis; None where nothing is known."""
        dots = [value for row in self.rows for value in row.dots]
        reference = [] if self.reference is None else [self.reference]
        found = limits_with_the_best([*dots, *reference], higher_is_better=self.higher_is_better)
        if found is None or not dots:
            return None
        low, high = found
        reach = WIDEST_INTERVAL * (high - low)
        ends = [end for row in self.rows if row.mean for end in (row.mean.low, row.mean.high) if end is not None]
        low, high = max(min([low, *ends]), low - reach), min(max([high, *ends]), high + reach)
        margin = 0.04 * (high - low or abs(high) or 1.0)
        return low - margin, high + margin


def limits_with_the_best(values: Sequence[float], *, higher_is_better: bool = True) -> tuple[float, float] | None:
    """The least and the greatest value without outliers; what is better than all others is none, however far it is."""
    found = limits_without_outliers(np.array(values), reach=OUTLYING)
    if found is None:
        return None
    return (found[0], max(values)) if higher_is_better else (min(values), found[1])


def top1_chart(results: StudyResults) -> Chart | None:
    """Test top-1 of every seed of every row, the best row first."""
    lines = best_first(results)
    baseline = next(line for line in lines if line.row == results.baseline).test_top1
    rows = [
        DotRow(line.title, list(results.top1[line.row].values()), line.test_top1, _colour(results, line))
        for line in lines
        if line.test_top1
    ]
    title = results.rows[results.baseline].title
    legend = {BASELINE: f"baseline: {title}"}
    if any(not row.compared for row in results.rows.values()):
        legend["faint"] = "not compared: there for others to learn from"
    panel = Panel("test top-1, %", rows, baseline.mean if baseline else None, legend)
    words = [f"{line.title} {line.test_top1.mean:.2f} %" for line in lines if line.test_top1]
    return _dot_chart(
        "top1",
        "Test top-1",
        f"Dots of the test top-1 of every seed, a row for each of {len(rows)}: {'; '.join(words)}.",
        f"A dot is a run, a bar the mean over the seeds, a line its {100 * CONFIDENCE:.0f} % confidence interval.",
        [panel],
    )


def difference_chart(results: StudyResults) -> Chart | None:
    """The differences of the rows to the baseline, seed by seed, and of the contrasts."""
    baseline = results.top1[results.baseline]
    rows = []
    for line in best_first(results):
        if line.difference is not None:
            own = results.top1[line.row]
            dots = [own[seed] - baseline[seed] for seed in sorted(own.keys() & baseline.keys())]
            rows.append(DotRow(line.title, dots, line.difference, _verdict(line)))
    legend = {"green": "better, p < 0.05", "vermilion": "worse, p < 0.05", "blue": "p ≥ 0.05, or no p"}
    meanings = {colour: words for colour, words in legend.items() if any(row.colour == colour for row in rows)}
    words = [f"{row.name} {difference_text(row.mean)}" for row in rows if isinstance(row.mean, Difference)]
    return _dot_chart(
        "differences",
        f"Difference to {_cut(results.rows[results.baseline].title, 60)}",
        f"Dots of the difference in test top-1 to the baseline, seed by seed: {'; '.join(words)}.",
        "Each dot is the difference of two runs under one seed; p is adjusted by Holm's method for the number of rows.",
        [Panel("points of test top-1", rows, 0.0, meanings)],
    )


def contrast_chart(results: StudyResults) -> Chart | None:
    """The contrasts, which are differences of rows to other rows."""
    rows = [DotRow(name, [found.mean], found, "blue") for name, found in results.contrast_differences.items() if found]
    words = [f"{row.name} {difference_text(row.mean)}" for row in rows if isinstance(row.mean, Difference)]
    return _dot_chart(
        "contrasts",
        "Contrasts",
        f"Differences of rows to other rows in test top-1: {'; '.join(words)}.",
        f"The mean over the pairs of rows and the seeds, with its {100 * CONFIDENCE:.0f} % confidence interval.",
        [Panel("points of test top-1", rows, 0.0)],
    )


def calibration_chart(results: StudyResults) -> Chart | None:
    """Negative log-likelihood and calibration error on the test set, of the rows that are compared."""
    lines = [line for line in best_first(results) if _is_compared(results, line) and line.test_top1]
    panels = []
    for title, name in (("test NLL, nats", "test_nll"), ("test ECE", "test_ece")):
        rows = [
            DotRow(
                line.title,
                [value for seed, value in results.figures(line.row, name).items() if seed in line.seeds],
                getattr(line, name),
                _colour(results, line),
            )
            for line in lines
        ]
        of_baseline = next((getattr(line, name) for line in lines if line.row == results.baseline), None)
        panels.append(Panel(title, rows, of_baseline.mean if of_baseline else None, higher_is_better=False))
    words = [
        f"{line.title} NLL {line.test_nll.mean:.3f} and ECE {line.test_ece.mean:.3f}"
        for line in lines
        if line.test_nll and line.test_ece
    ]
    return _dot_chart(
        "calibration",
        "Calibration on the test set",
        f"Dots of the negative log-likelihood and of the calibration error of every seed: {'; '.join(words)}.",
        "Lower is better. The expected calibration error (15 bins) is the mean distance of confidence from accuracy.",
        panels,
    )


def pareto_chart(results: StudyResults, cost: str, title: str, unit: str) -> Chart | None:
    """What the rows that are compared cost, beside their test top-1, with the front of those that no other row beats
    in both.

    Args:
        results: the results.
        cost: a figure of a line.
        title: of the chart.
        unit: of the cost, along the axis.
    """
    points = {
        line: (float(getattr(line, cost).mean), line.test_top1.mean)
        for line in results.lines
        if _is_compared(results, line) and getattr(line, cost) and line.test_top1
    }
    front = pareto_front(points)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (line, (x, y)) in enumerate(points.items()):
            colour = BASELINE if line.row == results.baseline else "blue" if line in front else "faint"
            mean = line.test_top1
            assert mean is not None
            if mean.low is not None and mean.high is not None:
                axes.vlines(x, mean.low, mean.high, color=LIGHT[colour], linewidth=0.7, alpha=0.6)
            (dot,) = axes.plot(x, y, "o", color=LIGHT[colour], markersize=4.5, zorder=3)
            dot.set_gid(f"point-{number}")
        steps = [points[line] for line in front]
        axes.plot(*zip(*steps, strict=True), color=LIGHT["blue"], linewidth=1.0, drawstyle="steps-post", zorder=2)
        _fit_cost_axis(axes, [x for x, _ in points.values()], unit)
        axes.set_ylabel("test top-1, %")
        _fit_top1_axis(axes, [y for _, y in points.values()])
        _number_front(axes, steps)

    if not points:
        return None
    words = [
        f"{number} {line.title} ({points[line][0]:,.4g}, {points[line][1]:.2f} %)"
        for number, line in enumerate(front, start=1)
    ]
    chart = draw_chart(
        f"pareto-{cost}".replace("_", "-"),
        title=title,
        label=f"Dots of cost and test top-1, {len(points)} rows. None is better and cheaper than: {'; '.join(words)}.",
        note=f"No row is better and cheaper than: {'; '.join(words)}. The baseline is orange, thin lines are the "
        f"{100 * CONFIDENCE:.0f} % intervals of the means. Costs are those of a row's own runs, not of its teachers.",
        height=3.4,
        paint=paint,
    )
    return chart and _with_names(
        chart, [f"{line.title}: {x:,.4g} {unit}, {y:.2f} %" for line, (x, y) in points.items()]
    )


def pareto_front(points: Mapping[Line, tuple[float, float]]) -> list[Line]:
    """The lines that no other line beats in cost (lower is better) and figure (higher is better), the cheapest
    first; of equals the first."""
    front: list[Line] = []
    for line, (_, figure) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if not front or figure > points[front[-1]][1]:
            front.append(line)
    return front


def course_chart(
    results: StudyResults, courses: CoursesByRow, name: str, title: str, unit: str, *, log: bool
) -> Chart | None:
    """A held-out figure of the rows that are compared, over epochs.

    Args:
        results: the results.
        courses: the courses of their runs.
        name: a figure of a course.
        title: of the chart.
        unit: of the figure, along the axis.
        log: whether the axis is logarithmic.
    """
    lines = [line for line in best_first(results) if _is_compared(results, line) and courses.get(line.row)]
    curves = {line: mean_course(courses[line.row], name) for line in lines}
    known = [line for line in lines if any(map(math.isfinite, curves[line][1]))]
    coloured = _chosen(results, known)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        others = list(
            chain.from_iterable(
                [*zip(*curves[line], strict=True), (math.nan, math.nan)] for line in known if line not in coloured
            )
        )
        if others:
            axes.plot(*zip(*others, strict=True), color=LIGHT["faint"], linewidth=0.6, label="others", zorder=1.5)
        for line, (colour, style) in zip(coloured, _styles(results, coloured), strict=True):
            epochs, values = curves[line]
            axes.plot(epochs, values, style, color=LIGHT[colour], label=line.title, **markers(epochs))
        fit_axis(axes, log=log)
        axes.set_ylabel(unit)
        epoch_axis(axes)
        legend_above(axes)

    if not coloured:
        return None
    words = "; ".join(f"{line.title} {describe_curve(*curves[line])}" for line in coloured)
    note = "Means over the finished runs of a row, or over those in progress where none is finished."
    if len(coloured) < len(known):
        note += f" The baseline and the best {len(coloured) - 1} of {len(known) - 1} other rows have a colour."
    identifier = f"course-{name}".replace("_", "-")
    return draw_chart(identifier, title=title, label=f"Line chart. {words}.", note=note, height=3.3, paint=paint)


def true_mass_chart(results: StudyResults, courses: CoursesByRow) -> Chart | None:
    """The true-class mass that students were taught with over time, a line for each run."""
    coloured = [line for line in best_first(results) if any(c.true_mass for c in courses.get(line.row, {}).values())]
    coloured = coloured[:MOST_LINES]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for line, (colour, style) in zip(coloured, _styles(results, coloured), strict=True):
            steps = [course.true_mass for course in courses[line.row].values() if course.true_mass]
            for number, points in enumerate(steps):
                label = UNNAMED if number else line.title
                axes.plot(*zip(*points, strict=True), style, color=LIGHT[colour], linewidth=1.0, label=label)
        fit_axis(axes)
        axes.set_ylabel("true-class mass")
        epoch_axis(axes)
        legend_above(axes)

    if not coloured:
        return None
    words = "; ".join(f"{line.title} ends at {_last_mass(courses[line.row])}" for line in coloured)
    note = "Mean probability that the target gave to the true class; every run is a line."
    return draw_chart(
        "true-mass",
        title="Target over time",
        label=f"Line chart of the true-class mass. {words}.",
        note=note,
        height=3.3,
        paint=paint,
    )


def target_charts(results: StudyResults, courses: CoursesByRow) -> list[Chart]:
    """The target distribution over time of one run of each row, on one scale of colours."""
    found = []
    for line in best_first(results):
        for seed, course in sorted(courses.get(line.row, {}).items()):
            if course.target is not None:
                found.append((f"{line.title}, seed {seed}", course.target))
                break
    found = found[:MOST_TARGETS]
    limits = heat_limits(np.concatenate([np.empty(0), *(target.mass.ravel() for _, target in found)]))
    charts = [
        draw_target(target, name=f"target-{number}", title=title, limits=limits)
        for number, (title, target) in enumerate(found)
    ]
    return [chart for chart in charts if chart is not None]


def best_first(results: StudyResults) -> list[Line]:
    """The lines in the order of the charts: those that are compared by their test top-1, then those that are not."""

    def key(line: Line) -> tuple[bool, float]:
        return not _is_compared(results, line), -line.test_top1.mean if line.test_top1 else math.inf

    return sorted(results.lines, key=key)


def _is_compared(results: StudyResults, line: Line) -> bool:
    return results.rows[line.row].compared


def _colour(results: StudyResults, line: Line) -> str:
    if line.row == results.baseline:
        return BASELINE
    return "blue" if _is_compared(results, line) else "faint"


def _verdict(line: Line) -> str:
    """The colour of a difference: whether it can be told from none."""
    if line.adjusted_p is None or line.adjusted_p >= 1.0 - CONFIDENCE or line.difference is None:
        return "blue"
    return "green" if line.difference.mean > 0 else "vermilion"


def _chosen(results: StudyResults, lines: Sequence[Line]) -> list[Line]:
    """The lines that get a colour: the best ones, and the baseline in any case."""
    first = [line for line in lines if line.row == results.baseline]
    return [*first, *[line for line in lines if line not in first]][:MOST_LINES]


def _styles(results: StudyResults, lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Colour and dashes of each line; those of the baseline are its own."""
    others = [line for line in lines if line.row != results.baseline]
    colours = [colour for colour in LINES if colour != BASELINE]

    def style(line: Line) -> tuple[str, str]:
        if line.row == results.baseline:
            return BASELINE, "--"
        turn, colour = divmod(others.index(line), len(colours))
        return colours[colour], ("-", ":", "--")[turn % 3]

    return [style(line) for line in lines]


def _last_mass(courses: Mapping[int, Course]) -> str:
    return ", ".join(f"{course.true_mass[-1][1]:.3f}" for course in courses.values() if course.true_mass)


def _dot_chart(name: str, title: str, label: str, note: str, panels: Sequence[Panel]) -> Chart | None:
    """Rows of dots, each under its name, over one axis or several beside each other."""
    limits = [panel.limits() for panel in panels]
    if all(found is None for found in limits):
        return None
    count = max(len(panel.rows) for panel in panels)
    beyond = [
        value
        for panel, found in zip(panels, limits, strict=True)
        for row in panel.rows
        for value in row.dots
        if found and not found[0] <= value <= found[1]
    ]
    if beyond:
        ends = f"{min(beyond):.4g}" if len(beyond) == 1 else f"{min(beyond):.4g} to {max(beyond):.4g}"
        note += f" Triangles at an edge stand for values beyond the axis: {ends}."

    def paint(figure: Figure) -> None:
        stack = np.ravel(figure.subplots(1, len(panels), sharey=True, squeeze=False))
        for number, (axes, panel, found) in enumerate(zip(stack, panels, limits, strict=True)):
            _draw_rows(axes, panel, found or (0.0, 1.0), named=number == 0)
            axes.xaxis.set_major_locator(MaxNLocator(7 // len(panels)))
        stack[0].set_ylim(count - 0.55, -0.75)

    return draw_chart(name, title=title, label=label, note=note, height=0.55 + ROW_HEIGHT * count, paint=paint)


def _draw_rows(axes: Axes, panel: Panel, limits: tuple[float, float], *, named: bool) -> None:
    axes.set_xlim(*limits)
    axes.set_xlabel(panel.title)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.spines["left"].set_visible(False)
    if panel.reference is not None:
        axes.axvline(panel.reference, color=LIGHT["muted"], linewidth=0.8, linestyle="--", label=UNNAMED, zorder=1)
    axes.hlines(
        np.arange(len(panel.rows) - 1) + 0.36, 0, 1, LIGHT["grid"], linewidth=0.6, transform=axes.get_yaxis_transform()
    )
    for y, row in enumerate(panel.rows):
        colour = LIGHT[row.colour]
        if named:
            axes.annotate(
                _cut(row.name, LONGEST_NAME),
                (0, y - 0.36),
                xycoords=axes.get_yaxis_transform(),
                va="center",
                fontsize=8,
                annotation_clip=False,
                in_layout=False,
            )
        if row.mean is not None and row.mean.low is not None and row.mean.high is not None:
            axes.plot([row.mean.low, row.mean.high], [y, y], color=colour, linewidth=1.3, label=UNNAMED)
        for marker, edge, values in _by_place(row.dots, limits):
            if not values:
                continue
            xs = values if edge is None else [edge] * len(values)
            axes.plot(
                xs, [y] * len(xs), marker, color=colour, markersize=3.4, alpha=0.65, clip_on=edge is None, label=UNNAMED
            )
        if row.mean is not None and limits[0] <= row.mean.mean <= limits[1]:
            axes.plot(row.mean.mean, y, "|", color=colour, markersize=8.5, markeredgewidth=2.0, label=UNNAMED)
    for colour, words in panel.legend.items():
        axes.plot([], [], color=LIGHT[colour], label=words)
    if panel.legend:
        legend_above(axes)


def _by_place(values: Sequence[float], limits: tuple[float, float]) -> list[tuple[str, float | None, list[float]]]:
    """Values with their marker and the edge where they stand, None for those that the axis shows."""
    low, high = limits
    return [
        ("o", None, [value for value in values if low <= value <= high]),
        ("<", low, [value for value in values if value < low]),
        (">", high, [value for value in values if value > high]),
    ]


def _fit_cost_axis(axes: Axes, costs: Sequence[float], unit: str) -> None:
    """A logarithmic axis where costs are far apart."""
    low, high = min(costs), max(costs)
    if low > 0 and high > 4 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.08, high * (high / low) ** 0.08)
        axes.xaxis.set_major_locator(log_locator(low, high))
        axes.minorticks_off()
    else:
        reach = (high - low) or abs(high) or 1.0
        axes.set_xlim(low - 0.1 * reach, high + 0.1 * reach)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.set_xlabel(unit)


def _fit_top1_axis(axes: Axes, values: Sequence[float]) -> None:
    """The range of the means, with room for numbers above them."""
    found = limits_with_the_best(values)
    assert found is not None
    low, high = found
    reach = (high - low) or abs(high) or 1.0
    axes.set_ylim(low - 0.08 * reach, high + 0.1 * reach)


def _number_front(axes: Axes, front: Sequence[tuple[float, float]]) -> None:
    """Numbers above and to the left of the points of a front, where no other point is; none over another."""
    to_share = axes.transData + axes.transAxes.inverted()
    across, lowest = -1.0, 0.0  # of the number before, as shares of the axes
    for number, point in enumerate(front, start=1):
        x, y = to_share.transform(point)
        y = max(y, lowest) if x - across < 0.06 else y
        across, lowest = x, y + 0.05
        axes.annotate(
            str(number),
            (x, y),
            xycoords="axes fraction",
            xytext=(-4, 1),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )


def _with_names(chart: Chart, names: Sequence[str]) -> Chart:
    """The chart with a name for each of its points, which a browser shows where the pointer is."""

    def entitle(found: re.Match[str]) -> str:
        return f"{found[1]}<title>{escape(names[int(found[2])])}</title>"

    svg = re.sub(r'(<g id="[\w-]*point-(\d+)">)', entitle, chart.svg)
    return Chart(chart.title, chart.note, chart.legend, Markup(svg))


def _cut(text: str, columns: int) -> str:
    """A text of so many columns at most, with an ellipsis where it is longer."""
    return text if cell_len(text) <= columns else set_cell_size(text, columns - 1).rstrip() + "…"
