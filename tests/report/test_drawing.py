"""Charts: names of any kind stand in their legends, and a few outliers flatten no axis but are marked at its edge."""

import math
import re

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfkd_fast.report.drawing import (
    Chart,
    Entry,
    draw_chart,
    epoch_axis,
    fit_axis,
    legend_above,
    limits_without_outliers,
    several_lines,
)

NAMES = ["plain", "_hidden", "_child1", "a$_^$b", "50%", "<b>&amp;", "名前", "a\\b", "e\x1b[31mred", "long" * 15]
LOSSES = np.geomspace(2.0, 0.1, 30)


def draw(courses: dict[str, list[float]], *, log: bool = False, zero: bool = False) -> tuple[Chart | None, Axes]:
    """A chart of courses over epochs, and its axes after it was drawn."""
    drawn: list[Axes] = []

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        drawn.append(axes)
        epochs = range(1, 1 + len(next(iter(courses.values()))))
        several_lines(axes, epochs, [*courses], courses.values())
        fit_axis(axes, log=log, zero=zero)
        epoch_axis(axes)
        legend_above(axes)

    return draw_chart("id", title="Title", label="Label", note="Note.", height=2.0, paint=paint), drawn[0]


@pytest.mark.filterwarnings("error")
def test_every_line_is_named_as_it_is_called_and_no_name_is_in_the_drawing() -> None:
    chart, _ = draw({name: [1.0 + number, 2.0] for number, name in enumerate(NAMES)})
    assert chart is not None
    assert [entry.name for entry in chart.legend] == NAMES
    assert len({(entry.colour, entry.style) for entry in chart.legend}) == len(NAMES)
    assert chart.legend[4] == Entry("50%", "blue", "dashed")
    words = re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg)
    assert [word for word in words if not word.isdecimal()] == ["epoch"]


def test_a_chart_is_as_wide_as_its_place_and_no_wider_than_a_phone() -> None:
    chart, _ = draw({"a": [1.0, 2.0]})
    assert chart is not None
    opening = re.match(r'<svg viewBox="0 0 ([\d.]+) [\d.]+" role="img" aria-label="Label">', chart.svg)
    assert opening
    assert float(opening[1]) < 350


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([*LOSSES, 7e-7], (0.1, 2.0)),
        ([1e6, *LOSSES], (0.1, 2.0)),
        ([7e-7, *LOSSES, math.nan, 1e6], (0.1, 2.0)),
        ([0.0, *LOSSES], (0.1, 2.0)),
        ([-1.0, *LOSSES], (0.1, 2.0)),
        ([2.3, 1.9, 7e-7], (1.9, 2.3)),
        ([*LOSSES, 0.01], (0.01, 2.0)),  # another decade is no outlier
        ([*LOSSES, 1e-4, 1e-5, 1e-6], (1e-6, 2.0)),  # a course that ends elsewhere
        ([2.3, 7e-7], (7e-7, 2.3)),
        ([0.5], (0.5, 0.5)),
    ],
)
def test_limits_of_a_logarithmic_axis(values: list[float], limits: tuple[float, float]) -> None:
    assert limits_without_outliers(np.array(values), log=True) == pytest.approx(limits)


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([*range(20), 1e6], (0, 19)),
        ([-1e6, *range(20)], (0, 19)),
        ([*range(20), 100], (0, 100)),  # the others can still be told apart
        ([1.0] * 20 + [1.0 + 1e-9, 1.2], (1.0, 1.2)),
        ([0.0] * 20 + [1e6], (0.0, 1e6)),  # there is nothing that it could flatten
        ([-3.0, 4.0], (-3.0, 4.0)),
    ],
)
def test_limits_of_a_linear_axis(values: list[float], limits: tuple[float, float]) -> None:
    assert limits_without_outliers(np.array(values)) == pytest.approx(limits)


def test_there_are_no_limits_of_what_is_not_known() -> None:
    assert limits_without_outliers(np.array([])) is None
    assert limits_without_outliers(np.array([math.nan, math.inf]), log=True) is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("log", [False, True])
def test_what_lies_beyond_the_axis_is_marked_at_its_edge_and_told(log: bool) -> None:
    losses = LOSSES.tolist()
    losses[4], losses[9] = 1e6, -1e7
    chart, axes = draw({"a": losses, "b": [0.5] * len(losses)}, log=log)
    low, high = axes.get_ylim()
    assert (axes.get_yscale() == "log") == log
    assert 0.05 < low < 0.1 and 2.0 < high < 4.0 if log else -1.0 < low < 0.1 and 2.0 < high < 3.0
    marks = {str(line.get_marker()): (*line.get_xdata(), *line.get_ydata()) for line in axes.get_lines()[2:]}
    assert marks == {"^": (5, high), "v": (10, low)}
    assert chart is not None
    assert chart.note == "Note. Triangles at an edge stand for values beyond the axis: -1e+07 to 1e+06."
    assert [entry.name for entry in chart.legend] == ["a", "b"]


def test_an_axis_without_outliers_has_no_marks() -> None:
    chart, axes = draw({"a": LOSSES.tolist()}, zero=True)
    assert chart is not None
    assert chart.note == "Note."
    assert (len(axes.get_lines()), axes.get_ylim()[0]) == (1, 0.0)


def test_one_epoch_has_one_tick() -> None:
    chart, axes = draw({"a": [3.0]})
    assert chart is not None
    assert [tick for tick in axes.get_xticks() if 0.4 < tick < 1.6] == [1.0]


@pytest.mark.filterwarnings("error")
def test_where_nothing_is_known_there_is_no_chart() -> None:
    assert draw({"a": [math.nan, math.inf]}, log=True)[0] is None
