"""Matplotlib figures as inline SVG that takes its colours, by name, and its font from the page around it.

The same figure gives the same text, whatever the user's matplotlibrc says.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

Array = NDArray[np.float64]

LIGHT = {
    "ink": "#1c2127",
    "muted": "#5d6772",
    "grid": "#e1e5e9",
    "faint": "#a9b6c3",
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
    "faint": "#566472",
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
    "font.size": 8.5,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["faint"],
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.6,
    "xtick.color": LIGHT["faint"],
    "ytick.color": LIGHT["faint"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 1.5,
    "lines.solid_joinstyle": "round",
    "figure.constrained_layout.use": True,
    "image.cmap": "viridis",
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tfkd_fast",
}

LINES = ("blue", "vermilion", "green", "purple")
"""The colours of lines, in the order of their use."""
DASHED, DOTTED = (0.0, (4.0, 1.5)), (0.0, (1.0, 1.0))

HALF, FULL = 5.4, 11.0
"""Widths in inches of a chart in one column, and of one across the page."""


@dataclass(frozen=True)
class Chart:
    """One figure of the page."""

    title: str
    note: str
    svg: Markup
    wide: bool = False


def inline_svg(name: str, label: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Markup:
    """Paint a figure of `size` inches and return one `<svg>` element, `label` being what a screen reader says.

    `name` is the prefix of the element's ids, so that several figures can share a page.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size, dpi=72)  # the resolution of SVG, so that both layouts agree
        paint(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # keep this layout: while saving as SVG, ticks would be left out of it
        for axes in figure.axes:  # the layout's last digits differ from call to call
            axes.set_position(np.round(axes.get_position().bounds, 4).tolist())
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"])
        )
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
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_xlabel("epoch")


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic vertical axis with plain numbers, where the values allow one."""
    positive = [value for value in values if value > 0]
    if not positive:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(log_locator(min(positive), max(positive)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_locator(low: float, high: float) -> LogLocator:
    """Ticks at the decades, and at 2 and 5 times them over a narrow range."""
    return LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,), numticks=12)


def heat_map(
    axes: Axes, scale: Axes, values: Array, extent: tuple[float, float], norm: Normalize, label: str = ""
) -> None:
    """Rows of positive values from the top down, over the epochs of `extent`, with their scale and what it measures.

    The page shows through where a value is zero or not known. `norm` is fitted to the others.
    """
    visible = np.ma.masked_less_equal(np.ma.masked_invalid(values), 0.0)
    low, high = (float(visible.min()), float(visible.max())) if visible.count() else (0.5, 1.0)
    norm.vmin, norm.vmax = (low, high) if high > 1.001 * low else (0.9 * low, 1.1 * high)
    image = axes.imshow(visible, aspect="auto", interpolation="none", extent=(*extent, len(values), 0), norm=norm)
    axes.grid(visible=False)
    bar = axes.figure.colorbar(image, cax=scale)
    bar.outline.set_visible(False)
    assert bar.solids is not None
    bar.solids.set_rasterized(True)
    bar.minorticks_off()
    bar.ax.grid(visible=False)
    if label:
        bar.set_label(label)
    if isinstance(norm, LogNorm):
        bar.ax.yaxis.set_major_locator(log_locator(low, high))
    else:
        bar.set_ticks([norm.vmin, norm.vmax])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))


def legend_above(axes: Axes) -> None:
    """A legend in one row, above the axes."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=5)


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
        dashes = ("-", DASHED, DOTTED)[turn % 3]
        axes.plot(epochs, values, color=LIGHT[LINES[colour]], linestyle=dashes, label=name, **markers(epochs))


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
