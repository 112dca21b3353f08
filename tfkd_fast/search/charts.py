"""Charts of the trials of a search. Each function returns None where nothing is known of what it shows."""

import math
import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from tfkd_fast.report.drawing import (
    LIGHT,
    UNNAMED,
    Chart,
    draw_chart,
    epoch_axis,
    legend_above,
    log_locator,
    markers,
)
from tfkd_fast.search.plan import Range
from tfkd_fast.search.results import SearchResults, State, TrialRecord, value_cell

JUDGE_NAMES = {"nll": "held-out calibrated NLL, nats", "top1": "held-out top-1, %"}
"""What trials are judged by, as the name of an axis."""
COLOURS: dict[State, str] = {"finished": "blue", "pruned": "faint"}
"""The colour of the dots of trials that have a judgement."""
LONGEST_NAME = 54
"""Characters below a chart, as many as its width has; the table has whole names."""
REACH = 3.0
"""How far judgements may be worse than the median to be shown in their place (our choice): those of useless trials
would flatten the others."""
MOST_CHOICES = 12
"""Choices that stand below a chart with their names."""


def progress_chart(results: SearchResults) -> Chart | None:
    """The judgement of every trial, and the best by then."""
    best = best_so_far(results)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _draw_dots(axes, results, [(trial, float(trial.number)) for trial in results.trials])
        numbers = [trial.number for trial in results.trials]
        axes.plot(numbers, best, drawstyle="steps-post", color=LIGHT["vermilion"], label="best by then")
        _fit(axes, results)
        axes.set_xlabel("trial")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        legend_above(axes)

    words = [f"{value:.4g} by trial {number}" for number, value in _steps(best)]
    label = f"The best judgement of {len(results.trials)} trials: {', '.join(words) or 'none yet'}."
    note = "A pruned trial stands where it was after its last epoch."
    return draw_chart("progress", title="The best so far", label=label, note=note, height=2.6, paint=paint)


def best_so_far(results: SearchResults) -> list[float]:
    """The judgement of the best finished trial by each trial, NaN before the first."""
    order = max if results.search.higher_is_better else min
    best, found = math.nan, []
    for trial in results.trials:
        if trial.state == "finished" and trial.judgement is not None:
            best = trial.judgement if math.isnan(best) else order(best, trial.judgement)
        found.append(best)
    return found


def _steps(best: Sequence[float]) -> list[tuple[int, float]]:
    """The trials that were better than all before them."""
    pairs = list(enumerate(best))
    return [(number, value) for number, value in pairs if math.isfinite(value) and value not in best[:number]]


def course_chart(results: SearchResults) -> Chart | None:
    """The judgement of every trial over its epochs."""
    best = results.best

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        named: set[str] = set()
        for trial in results.trials:
            if trial is not best and trial.course:
                style, kind = ("--", "pruned") if trial.state == "pruned" else ("-", "others")
                epochs = list(trial.course)
                label = UNNAMED if kind in named else kind
                axes.plot(epochs, list(trial.course.values()), style, color=LIGHT["faint"], linewidth=0.7, label=label)
                named.add(kind)
        if best is not None and best.course:
            epochs = list(best.course)
            name = f"trial {best.number}, the best"
            axes.plot(epochs, list(best.course.values()), color=LIGHT["blue"], label=name, **markers(epochs))
        _fit(axes, results, list(best.course.values()) if best else [])
        epoch_axis(axes)
        legend_above(axes)

    last = [f"trial {trial.number} {trial.course[trial.epochs]:.4g}" for trial in results.best_first if trial.course]
    label = f"Lines of the judgement over epochs, at their ends: {', '.join(last) or 'none finished yet'}."
    note = "After each epoch, of the best candidate; the judgement itself is that of the student of the last epoch."
    return draw_chart("courses", title="Trials over their epochs", label=label, note=note, height=2.8, paint=paint)


def key_charts(results: SearchResults) -> list[Chart]:
    """The judgement against every key."""
    charts = (_key_chart(results, item, number) for number, item in enumerate(results.search.ranges))
    return [chart for chart in charts if chart is not None]


def _key_chart(results: SearchResults, item: Range, number: int) -> Chart | None:
    best = results.best

    def place(trial: TrialRecord) -> float:
        value = trial.values[item.key]
        return float(item.values.index(value) if item.kind == "choices" else value)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _draw_dots(axes, results, [(trial, place(trial)) for trial in results.trials])
        if best is not None and best.judgement is not None:
            axes.plot([place(best)], [best.judgement], "o", color=LIGHT["vermilion"], markersize=6.0, label=UNNAMED)
            axes.plot([], [], color=LIGHT["vermilion"], label=f"trial {best.number}, the best")
        _fit(axes, results)
        axes.set_xlabel(item.key[:LONGEST_NAME])
        if item.kind == "choices":
            axes.set_xlim(-0.5, len(item.values) - 0.5)
            if len(item.values) <= MOST_CHOICES:
                names = [value_cell(value)[: LONGEST_NAME // len(item.values)] for value in item.values]
                axes.set_xticks(range(len(names)), names)
        elif item.kind == "log":
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(log_locator(*item.values))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        legend_above(axes)

    known = (f"{value_cell(trial.values[item.key])} {trial.judgement:.4g}" for trial in results.best_first[:5])
    words = ", ".join(known)
    label = f"Dots of the judgement against {item.key}; the best: {words or 'none yet'}."
    note = "Other keys differ from trial to trial, too."
    name = f"key{number}-" + re.sub(r"\W", "-", item.key)
    return draw_chart(name, title=item.key, label=label, note=note, height=2.4, paint=paint)


def _fit(axes: Axes, results: SearchResults, others: Sequence[float] = ()) -> None:
    """Let the vertical axis show the judgements, but for those that are worse than the median by more than `REACH`
    times as much as the best is better; and these other values."""
    axes.set_ylabel(JUDGE_NAMES[results.search.settings.judge])
    known = sorted(trial.judgement for trial in results.trials if trial.judgement is not None)
    if not known:
        return
    best = known[-1] if results.search.higher_is_better else known[0]
    median = known[len(known) // 2]
    near = [value for value in known if abs(value - median) <= REACH * (abs(median - best) or abs(best))]
    low, high = min(*near, *others, best), max(*near, *others, best)
    margin = 0.05 * (high - low or abs(high) or 1.0)
    axes.set_ylim(low - margin, high + margin)


def _draw_dots(axes: Axes, results: SearchResults, places: Sequence[tuple[TrialRecord, float]]) -> None:
    """A dot for each trial that has a judgement, in the colour of its state."""
    for state, colour in COLOURS.items():
        dots = [(x, trial.judgement) for trial, x in places if trial.state == state and trial.judgement is not None]
        if dots:
            xs, ys = zip(*dots, strict=True)
            axes.plot(xs, ys, "o", color=LIGHT[colour], markersize=4.0, label=UNNAMED)
            axes.plot([], [], color=LIGHT[colour], label=state)
