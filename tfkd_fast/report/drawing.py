"""Matplotlib figures as inline SVG that takes its colours, by name, and its font from the page around it.

The same figure gives the same text, whatever the user's matplotlibrc says.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

Array = NDArray[np.float64]

LIGHT = {
    "ink": "#1c2127",
    "muted": "#5d6772",
    "grid": "#e1e5e9",
    "faint": "#8492a0",
    "paper": "#fbfbfc",
    "panel": "#fffffe",
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "green": "#009e73",
    "purple": "#a8467f",
    "rise": "#fbe3d3",
}
"""Colours by name, as drawn; those of lines are Okabe and Ito's, which the colour-blind can distinguish (with a darker
purple)."""

DARK = {
    "ink": "#e7eaee",
    "muted": "#a2acb7",
    "grid": "#2d343c",
    "faint": "#6d7b89",
    "paper": "#14181d",
    "panel": "#1b2026",
    "blue": "#56b4e9",
    "vermilion": "#f58a3c",
    "green": "#2fc49a",
    "purple": "#dd8fbd",
    "rise": "#4a2f1f",
}
"""The same names on a dark screen."""

STYLE: Any = {  # the type of its keys differs between versions of matplotlib
    "font.size": 9.0,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["faint"],
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.6,
    "xtick.color": LIGHT["faint"],
    "ytick.color": LIGHT["faint"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.5,
    "lines.dashed_pattern": (4.0, 1.5),
    "lines.dotted_pattern": (1.0, 1.0),
    "lines.solid_joinstyle": "round",
    "figure.constrained_layout.use": True,
    "image.cmap": "viridis",
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tfkd_fast",
}

LINES = ("blue", "vermilion", "green", "purple")
"""The colours of lines, in the order of their use."""

UNNAMED = "\0"
"""The label of a line that stands in no legend: no file and no term can be called so."""

WIDTH = 4.8
"""Width of every chart in inches: 346 units of SVG, about as many pixels as a phone gives it, so that its text can be
read there."""


@dataclass(frozen=True)
class Entry:
    """A line of a legend, with the colour and the style of the line that it names."""

    name: str
    colour: str
    """Name of the colour, one of those of `LIGHT`."""
    style: str
    """Style of the line, as CSS names it."""


@dataclass(frozen=True)
class Chart:
    """One figure of the page."""

    title: str
    note: str
    legend: list[Entry]
    """What the lines are. It is text of the page, where names of any length and script have their place."""
    svg: Markup


def draw_chart(
    name: str, *, title: str, label: str, note: str, height: float, paint: Callable[[Figure], None]
) -> Chart | None:
    """Paint a chart that is `height` inches high; None where nothing is known of what it shows.

    What lies beyond an axis is marked at its edge and told in the note.

    `name` is the prefix of the ids of its `<svg>`, so that several charts can share a page; `label` is what a screen
    reader says.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser looks for fonts of its own
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(WIDTH, height), dpi=72)  # the resolution of SVG, so that both layouts agree
        paint(figure)
        if not any(_shows_anything(axes) for axes in figure.axes):
            return None
        legend = [entry for axes in figure.axes for entry in _take_legend(axes)]
        beyond = [value for axes in figure.axes for value in _mark_beyond(axes)]
        svg = _inline_svg(figure, name, label)
    if beyond:
        least, most = (f"{extreme(beyond):.2g}" for extreme in (min, max))
        values = least if least == most else f"{least} to {most}"
        note += f" Triangles at an edge stand for values beyond the axis: {values}."
    return Chart(title, note, legend, svg)


def _take_legend(axes: Axes) -> list[Entry]:
    """The lines of a legend, which is removed from the axes."""
    legend = axes.get_legend()
    if legend is None:
        return []
    legend.remove()
    names = {value: name for name, value in LIGHT.items()}
    styles: dict[Any, str] = {"-": "solid", "--": "dashed", ":": "dotted"}
    return [
        Entry(text.get_text(), names[str(line.get_color())], styles[line.get_linestyle()])
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    ]


def _mark_beyond(axes: Axes) -> list[float]:
    """Mark the points of lines that the vertical axis leaves out, and return their values."""
    limits = axes.get_ylim()
    low, high = sorted(limits)
    beyond: list[float] = []
    for line in _lines_of_data(axes):
        x, y = (np.asarray(part, dtype=np.float64) for part in line.get_data(orig=True))
        for edge, marker, outside in ((low, "v", y < low), (high, "^", y > high)):
            if outside.any():
                beyond += y[outside].tolist()
                edges = np.full(int(outside.sum()), edge)
                axes.plot(x[outside], edges, marker, color=line.get_color(), markersize=4.5, clip_on=False)
    axes.set_ylim(*limits)
    return beyond


def _lines_of_data(axes: Axes) -> list[Line2D]:
    """The lines whose heights are data, without vertical marks from edge to edge."""
    return [line for line in axes.get_lines() if line.get_transform().contains_branch_seperately(axes.transData)[1]]


def _shows_anything(axes: Axes) -> bool:
    """Whether a point of a line or a cell of an image is known; marks across the axes do not count."""
    courses: list[Any] = [
        line.get_ydata(orig=True) for line in axes.get_lines() if line.get_transform() == axes.transData
    ]
    courses += [image.get_array() for image in axes.get_images()]
    return any(np.isfinite(np.ma.asarray(values, dtype=np.float64).compressed()).any() for values in courses)


def _inline_svg(figure: Figure, name: str, label: str) -> Markup:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep this layout: while saving as SVG, ticks would be left out of it
    for axes in figure.axes:  # the layout's last digits differ from call to call
        axes.set_position(np.round(axes.get_position().bounds, 4).tolist())
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"]))
    opening, _, body = file.getvalue().partition("<defs>")
    box = re.search(r'viewBox="([^"]+)"', opening)
    assert box is not None
    body = re.sub(r"<style.*?</style>", "", body, count=1)  # it would apply to the whole page, which has it itself
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body).replace("xlink:href", "href")
    for colour, value in LIGHT.items():
        body = body.replace(value, f"var(--{colour})")
    return Markup('<svg viewBox="{}" role="img" aria-label="{}"><defs>').format(box[1], label) + Markup(body.strip())


def epoch_axis(axes: Axes) -> None:
    """Mark whole epochs along the bottom."""
    low, high = axes.get_xlim()
    if high - low < 1.0:  # a single epoch
        axes.set_xlim(low - 0.5, high + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def fit_axis(*stack: Axes, log: bool = False, zero: bool = False) -> None:
    """Let the vertical axis of drawn lines show all but outliers; several axes share one range.

    A logarithmic axis has plain numbers; it is linear after all over a narrow range, and where not only outliers are
    zero or negative. With `zero` the axis begins there.
    """
    lines = [line for axes in stack for line in _lines_of_data(axes)]
    values = np.concatenate([np.empty(0), *(np.asarray(line.get_ydata(orig=True), np.float64) for line in lines)])
    limits = limits_without_outliers(values, log=log)
    if limits is None:
        return
    low, high = limits
    log = log and low > 0 and high > 4 * low
    for axes in stack:
        if log:
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_major_locator(log_locator(low, high))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        known = values[np.isfinite(values)]
        if zero:
            axes.set_ylim(0.0, 1.05 * high or 1.0)
        elif low > known.min() or high < known.max():
            axes.set_ylim(*_widen(low, high, log=log))


def limits_without_outliers(values: Array, *, log: bool = False, reach: float = 10.0) -> tuple[float, float] | None:
    """The least and the greatest of the values that an axis should show; None where nothing is known.

    A twentieth of the values at each end, and at least one, are outliers if they are further from the others than these
    extend: `reach` times as far on a linear axis, and by half of their size; once as far on a logarithmic one, where
    zero and negative values are infinitely far, and by a decade. So a single value flattens no chart, and a course that
    ends elsewhere is shown. Our choice.
    """
    known = np.sort(values[np.isfinite(values)])
    ends = min(max(1, len(known) // 20), (len(known) - 1) // 2)
    if not len(known):
        return None
    if log and known[ends] > 0:
        core = np.log10(known[ends : len(known) - ends])
        distance = max(core[-1] - core[0], 1.0)
        low, high = 10.0 ** (core[0] - distance), 10.0 ** (core[-1] + distance)
    else:
        core = known[ends : len(known) - ends]
        distance = max(reach * (core[-1] - core[0]), 0.5 * np.abs(core).max()) or math.inf
        low, high = core[0] - distance, core[-1] + distance
    inliers = known[(known >= low) & (known <= high)]
    return float(inliers[0]), float(inliers[-1])


def _widen(low: float, high: float, *, log: bool) -> tuple[float, float]:
    """Limits with the margin that matplotlib leaves, a twentieth at each end."""
    if log:
        margin = (high / low) ** 0.05
        return low / margin, high * margin
    margin = 0.05 * (high - low or abs(high))
    return low - margin, high + margin


def log_locator(low: float, high: float) -> Locator:
    """Ticks at the decades; at 2 and 5 times them as well over a narrow range, and evenly over a very narrow one."""
    if high < 4 * low:
        return MaxNLocator(4)
    return LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,), numticks=12)


def heat_map(
    axes: Axes,
    scale: Axes,
    values: Array,
    extent: tuple[float, float],
    label: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """Rows of positive values from the top down, over the epochs of `extent`, with their scale and what it measures.

    The page shows through where a value is zero or not known. The scale is logarithmic, from one of `limits` to the
    other or as far as the values go, and pointed where it does not reach to an outlier.
    """
    visible = np.ma.masked_less_equal(np.ma.masked_invalid(values), 0.0)
    low, high = limits or heat_limits(values) or (0.5, 1.0)
    cut_low, cut_high = (bool(visible.count() and outside.any()) for outside in (visible < low, visible > high))
    norm = LogNorm(low, high) if high > 1.001 * low else LogNorm(0.9 * low, 1.1 * high)
    image = axes.imshow(visible, aspect="auto", interpolation="none", extent=(*extent, len(values), 0), norm=norm)
    axes.grid(visible=False)
    ends = "both" if cut_low and cut_high else "min" if cut_low else "max" if cut_high else "neither"
    bar = axes.figure.colorbar(image, cax=scale, extend=ends)
    bar.outline.set_visible(False)
    assert bar.solids is not None
    bar.solids.set_rasterized(True)
    bar.ax.grid(visible=False)
    bar.set_label(label)
    bar.ax.yaxis.set_major_locator(log_locator(low, high))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bar.minorticks_off()


def heat_limits(values: Array) -> tuple[float, float] | None:
    """The ends of the scale of a heat map: those of its positive values without outliers; None without any."""
    return limits_without_outliers(values[np.isfinite(values) & (values > 0.0)], log=True)


def legend_above(axes: Axes) -> None:
    """A legend of the lines that have a name."""
    lines = [line for line in axes.get_lines() if line.get_label() != UNNAMED]
    legend = axes.legend(lines, ["line"] * len(lines))  # matplotlib would leave out names that begin with "_"
    for text, line in zip(legend.get_texts(), lines, strict=True):
        text.set_text(str(line.get_label()))


def row_label(axes: Axes, text: str) -> None:
    """A horizontal name to the left of a row of a stack of axes."""
    axes.set_ylabel(text, rotation=0, ha="right", va="center", color=LIGHT["ink"])


def markers(points: Sequence[object]) -> dict[str, Any]:
    """Markers for few points, of which a single one would not show as a line."""
    return {"marker": "o", "markersize": 3.0} if len(points) <= 24 else {}


def several_lines(
    axes: Axes, epochs: Sequence[float], names: Sequence[str], courses: Iterable[Sequence[float]]
) -> None:
    """Draw a line for each name, with a colour of its own, then with dashes."""
    for number, (name, values) in enumerate(zip(names, courses, strict=True)):
        turn, colour = divmod(number, len(LINES))
        style = ("-", "--", ":")[turn % 3]
        axes.plot(epochs, values, style, color=LIGHT[LINES[colour]], label=name, **markers(epochs))


def describe_curve(epochs: Sequence[float], values: Sequence[float], unit: str = "") -> str:
    """A curve in words: its ends and its extremes."""
    known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if np.isfinite(value)]
    if not known:
        return "not known"
    (first, start), (last, end) = known[0], known[-1]
    low, high = (extreme(value for _, value in known) for extreme in (min, max))
    return (
        f"{start:.4g}{unit} at epoch {first:g}, {end:.4g}{unit} at epoch {last:g}, "
        f"between {low:.4g}{unit} and {high:.4g}{unit}"
    )
