"""Matplotlib figures as inline SVG that takes its colours, by name, and its font from the page around it.

The same figure gives the same text, whatever the user's matplotlibrc says.
"""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

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
"""Colours by name, as drawn; lines are Okabe and Ito's, told apart by the colour-blind (purple darkened to be read)."""

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

STYLE: dict[str, Any] = {
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
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 1.5,
    "lines.solid_joinstyle": "round",
    "figure.constrained_layout.use": True,
    "image.cmap": "viridis",
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tfkd_fast",
}


def inline_svg(name: str, label: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Markup:
    """Paint a figure of `size` inches and return one `<svg>` element, `label` being what a screen reader says.

    `name` is the prefix of the element's ids, so that several figures can share a page.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size)
        paint(figure)
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
