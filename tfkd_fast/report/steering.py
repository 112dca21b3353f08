"""Charts of what steered training: targets, rankings, actions and rewards. A chart is None for a run that has no such
events."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tfkd_fast.events import CandidateTarget, TargetsDecided
from tfkd_fast.report.drawing import (
    LIGHT,
    Array,
    Chart,
    describe_curve,
    draw_chart,
    epoch_axis,
    fit_axis,
    heat_map,
    markers,
    row_label,
)
from tfkd_fast.report.format import decimals, interval_text
from tfkd_fast.report.run import RunRecord
from tfkd_fast.steering.targets import LEAST_RISE

RANKS = LinearSegmentedColormap.from_list("ranks", [(0.1, 0.45, 0.72, 1.0), (0.1, 0.45, 0.72, 0.06)])
"""Colours from the best to the worst rank, which fade into a light or a dark page."""
MOST_BAND_LABELS = 12
MOST_NUMBERED_EVENTS = 8
MOST_SEPARATED_EVENTS = 40


@dataclass(frozen=True)
class TargetMass:
    """The student's target over time."""

    first_epoch: int
    mass: Array
    """(R,E) float64: the mass on each of the R classes but the true one in E epochs, the most similar first; NaN where
    it is not known."""


def target_mass(run: RunRecord) -> TargetMass | None:
    """The mass that the student's target gave to the other classes over time; None where nothing was decided."""
    if not run.decisions:
        return None
    first, last = run.decisions[0].first_epoch, run.decisions[-1].last_epoch
    targets = [run.survivor(decision) for decision in run.decisions]
    mass = np.full((len(targets[0].mass_by_rank) - 1, last - first + 1), np.nan)
    for decision, target in zip(run.decisions, targets, strict=True):
        mass[:, decision.first_epoch - first : decision.last_epoch - first + 1] = np.array([target.mass_by_rank[1:]]).T
    return TargetMass(first, mass)


def target_chart(run: RunRecord) -> Chart | None:
    """The student's target over time: the mass on each class but the true one."""
    target = target_mass(run)
    return None if target is None else draw_target(target, name="target", title="Target distribution")


def draw_target(
    target: TargetMass, *, name: str, title: str, limits: tuple[float, float] | None = None
) -> Chart | None:
    """A heat map of the mass on each class but the true one.

    Args:
        target: the target.
        name: of the chart, see `draw_chart`.
        title: of the chart.
        limits: ends of the scale of colours, which several charts may share; by default those of this target.
    """
    first, mass = target.first_epoch, target.mass
    last = first + mass.shape[1] - 1
    bands = rank_bands(mass)
    extent = (first - 0.5, last + 0.5)

    def paint(figure: Figure) -> None:
        others, scale = figure.subplots(1, 2, width_ratios=(40, 1))
        rows = np.array([mass[start - 1] for start, _ in bands])
        heat_map(others, scale, rows, extent, "mass a class", limits=limits)
        others.set_yticks(*_band_ticks(bands))
        others.set_ylabel("similarity rank")
        epoch_axis(others)

    label = (
        f"Heat map of the target's mass on the classes other than the true one, by similarity rank, epochs {first} to "
        f"{last}. In the last of them: {_mass_words(mass[:, -1], bands)}."
    )
    note = (
        "Mass on each class but the true one, as a mean over the labels, the most similar class first; neighbouring "
        "ranks that were always taught alike share a row. Empty where there is none, as in a one-hot label."
    )
    height = 1.0 + max(1.5, min(3.0, 0.32 * len(bands)))
    return draw_chart(name, title=title, label=label, note=note, height=height, paint=paint)


def distance_chart(run: RunRecord) -> Chart | None:
    """How far the student's target was from the one-hot label, and where it moved away from it."""
    if not run.decisions:
        return None
    targets = [run.survivor(decision) for decision in run.decisions]
    first, last = run.decisions[0].first_epoch, run.decisions[-1].last_epoch
    rises = divergence_rises(run)

    def paint(figure: Figure) -> None:
        true_mass, divergence = figure.subplots(2, 1, sharex=True)
        _draw_steps(true_mass, run, lambda candidate: candidate.true_mass, LIGHT["blue"])
        fit_axis(true_mass)
        true_mass.set_title("true-class mass")
        divergence.broken_barh(
            [(decision.first_epoch - 0.5, decision.epochs) for decision in rises],
            (0, 1),
            transform=divergence.get_xaxis_transform(),
            facecolor=LIGHT["rise"],
            zorder=0,
        )
        _draw_steps(divergence, run, lambda candidate: candidate.divergence, LIGHT["vermilion"])
        fit_axis(divergence, zero=True)
        divergence.set_title("divergence from the one-hot label, nats")
        divergence.set_xlim(first - 0.5, last + 0.5)
        epoch_axis(divergence)

    starts = [decision.first_epoch for decision in run.decisions]
    label = (
        f"Two line charts. True-class mass: {describe_curve(starts, [target.true_mass for target in targets])}. "
        f"The divergence from the one-hot label rose in {len(rises)} intervals."
    )
    note = (
        "Divergence is KL(one-hot ‖ target). Where it rose from one decision to the next, the interval is shaded. "
        "Thin lines are the other candidates."
    )
    return draw_chart("distance", title="Distance from the label", label=label, note=note, height=3.6, paint=paint)


def ranking_chart(run: RunRecord) -> Chart | None:
    """Every candidate's rank under every criterion at every selection."""
    if not run.selections:
        return None
    criteria = run.selections[-1].criteria
    names = candidate_names(run)
    events = range(len(run.selections))
    panels = np.full((1 + len(criteria), len(names), len(events)), np.nan)
    for event, selection in enumerate(run.selections):
        panels[:, : len(selection.scores), event] = np.column_stack([selection.scores, selection.ranks]).T
    winners = [selection.winner for selection in run.selections]
    numbered, separated = len(events) <= MOST_NUMBERED_EVENTS, len(events) <= MOST_SEPARATED_EVENTS
    of_ranks, of_scores = Normalize(1, max(2, len(names))), Normalize(*_ends(panels[0]))

    def paint(figure: Figure) -> None:
        stack = np.ravel(figure.subplots(len(panels), sharex=True))
        for axes, title, ranks in zip(stack, [f"score: {run.selections[0].aggregate}", *criteria], panels, strict=True):
            axes.set_title(title)
            norm = of_scores if axes is stack[0] else of_ranks
            _draw_ranks(axes, ranks, norm, numbered=numbered, separated=separated)
            axes.set_yticks(range(len(names)), names)
            if separated or axes is stack[0]:  # many dots would hide what is behind them
                axes.plot(
                    [event - 0.36 * numbered for event in events],
                    winners,
                    linestyle="none",
                    marker="o",
                    markersize=5.0 if numbered else 3.5 if separated else 2.0,
                    markerfacecolor=LIGHT["vermilion"],
                    markeredgecolor=LIGHT["panel"],
                    markeredgewidth=0.6 * separated,
                )
        ends = [str(selection.epoch) for selection in run.selections]
        bottom = stack[-1].xaxis
        bottom.set_major_locator(MaxNLocator(min(len(events), 8), integer=True))
        bottom.set_major_formatter(FuncFormatter(lambda x, _: ends[int(x)] if x in events else ""))
        stack[-1].set_xlabel("selection after epoch")

    won = ", ".join(f"{name} {count}" for name, count in selection_wins(run).items())
    label = f"Matrix of the candidates' ranks at {len(events)} selections. Selections won: {won}."
    note = (
        f"Rank under each criterion: 1, the strongest blue, is best, {len(names)} is the palest. The score is what "
        "they amount to, the lowest is best; its strongest blue is the lowest of all selections. An orange dot marks "
        "the candidate that training continued from."
    )
    height = 0.6 + len(panels) * (0.3 + max(0.1, min(0.2, 2.4 / len(names))) * len(names))
    return draw_chart("ranking", title="Ranking of the candidates", label=label, note=note, height=height, paint=paint)


def action_chart(run: RunRecord) -> Chart | None:
    """The controller's actions over time, one row a dimension."""
    decisions = [decision for decision in run.decisions if run.survivor(decision).action]
    if not decisions:
        return None
    chosen = np.array([run.survivor(decision).action for decision in decisions])
    middles = [decision.first_epoch + (decision.epochs - 1) / 2 for decision in decisions]
    names = decisions[0].action_names

    def paint(figure: Figure) -> None:
        stack = np.ravel(figure.subplots(len(names), sharex=True, sharey=True, squeeze=False))
        tried_at = [x for x, decision in zip(middles, decisions, strict=True) for _ in decision.candidates]
        tried = np.array([candidate.action for decision in decisions for candidate in decision.candidates])
        for axes, name, line, dots in zip(stack, names, chosen.T, tried.T, strict=True):
            axes.axhline(0, color=LIGHT["muted"], linewidth=0.6)
            axes.plot(tried_at, dots, ".", color=LIGHT["faint"], markersize=3.5)
            axes.plot(middles, line, color=LIGHT["blue"], linewidth=1.2, **markers(middles))
            row_label(axes, name)
        fit_axis(*stack)
        epoch_axis(stack[-1])

    last = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, chosen[-1], strict=True) if np.isfinite(value))
    label = (
        f"Line charts of the action, one for each of {len(names)} dimensions. The last action: {last or 'not known'}."
    )
    note = "The surviving candidate's action (line) among all that were tried (dots). 0 is the neutral action."
    height = 0.6 + max(1.8, 0.62 * len(names))
    return draw_chart("actions", title="Actions", label=label, note=note, height=height, paint=paint)


def reward_chart(run: RunRecord) -> Chart | None:
    """Every candidate's reward, and the figures of the policy's updates."""
    ends = {decision.interval: decision.last_epoch for decision in run.decisions}
    ends |= {selection.interval: selection.epoch for selection in run.selections}  # several under one decision
    rewards = [reward for reward in run.rewards if reward.interval in ends]
    if not rewards:
        return None
    given_at = [ends[reward.interval] for reward in rewards]
    survivors = [
        reward.rewards[run.winners.get(reward.interval, 0) if len(reward.rewards) > 1 else 0]  # one action for all
        for reward in rewards
    ]
    everyone = [(ends[reward.interval], value) for reward in rewards for value in reward.rewards]
    updates = [(ends[reward.interval], reward.update) for reward in rewards if reward.update]
    figures = (
        [name for name in updates[0][1] if len({update.get(name) for _, update in updates}) > 1] if updates else []
    )

    def paint(figure: Figure) -> None:
        ratios = [2.2] + [1.0] * len(figures)
        stack = np.ravel(figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios))
        stack[0].axhline(0, color=LIGHT["muted"], linewidth=0.6)
        stack[0].plot(*zip(*everyone, strict=True), ".", color=LIGHT["faint"], markersize=4)
        stack[0].plot(given_at, survivors, ".-", color=LIGHT["vermilion"], linewidth=0.9, markersize=4)
        fit_axis(stack[0])
        row_label(stack[0], "reward")
        for axes, name in zip(stack[1:], figures, strict=True):
            values = [(epoch, update.get(name, math.nan)) for epoch, update in updates]
            axes.plot(*zip(*values, strict=True), color=LIGHT["purple"], linewidth=1.2, **markers(values))
            fit_axis(axes)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            row_label(axes, name.replace("_", " "))
        epoch_axis(stack[-1])

    label = f"Rewards; the surviving candidate's: {describe_curve(given_at, survivors)}."
    note = "The surviving candidate's reward (line) among all candidates' (dots)."
    if figures:
        label += f" Below them, figures of {len(updates)} updates of the policy: {', '.join(figures)}."
        note += " Below, figures of the policy's updates."
    height = 1.9 + 0.62 * len(figures)
    return draw_chart("rewards", title="Rewards and learning", label=label, note=note, height=height, paint=paint)


def divergence_rises(run: RunRecord) -> list[TargetsDecided]:
    """The decisions that took the student's target further from the one-hot label than the decision before them."""
    return [
        now
        for before, now in pairwise(run.controller_decisions)
        if run.survivor(now).divergence > run.survivor(before).divergence + LEAST_RISE
    ]


def rank_bands(mass: Array) -> list[tuple[int, int]]:
    """Neighbouring ranks (first, last), counted from 1, whose rows of `mass` (C-1, epochs) are equal to rounding."""
    alike = np.isclose(mass[1:], mass[:-1], rtol=1e-4, atol=0.0, equal_nan=True).all(axis=1)
    firsts = [1, *(np.flatnonzero(~alike) + 2).tolist()]
    return [(first, following - 1) for first, following in pairwise([*firsts, len(mass) + 1])]


def candidate_names(run: RunRecord) -> list[str]:
    """The rows of selections: candidates by number, and by role where a role was decided for them (the most frequent),
    and their average."""
    roles: dict[int, Counter[str]] = {}
    for decision in run.decisions:
        if decision.interval in run.winners:
            for slot, candidate in enumerate(decision.candidates):
                roles.setdefault(slot, Counter())[candidate.role] += 1
    count = max(len(selection.scores) for selection in run.selections)
    names = [f"{slot} · {roles[slot].most_common(1)[0][0]}" if slot in roles else str(slot) for slot in range(count)]
    for selection in run.selections:
        if selection.averaged:
            names[len(selection.order) - 1] = "average"
    return names


def selection_wins(run: RunRecord) -> dict[str, int]:
    """How many selections each candidate or the average won."""
    counts = Counter(selection.winner for selection in run.selections)
    return {name: counts[slot] for slot, name in enumerate(candidate_names(run))}


def _band_ticks(bands: list[tuple[int, int]]) -> tuple[list[float], list[str]]:
    """Positions and names of the rows that get a label: all of a few, else those of ranks 1, 2, 5, 10, 20, ..."""
    labelled = {digit * 10**power for power in range(6) for digit in (1, 2, 5)}
    rows = [row for row, (first, _) in enumerate(bands) if len(bands) <= MOST_BAND_LABELS or first in labelled]
    return [row + 0.5 for row in rows], [interval_text(*bands[row]) for row in rows]


def _draw_steps(axes: Axes, run: RunRecord, value: Callable[[CandidateTarget], float], colour: str) -> None:
    """A level for each interval: the student's as one line, those of the other candidates as strokes behind it."""
    student: list[tuple[float, float]] = []
    others: list[tuple[float, float]] = []
    for decision in run.decisions:
        ends = (decision.first_epoch - 0.5, decision.last_epoch + 0.5)
        survivor = run.survivor(decision)
        student += [(x, value(survivor)) for x in ends]
        for candidate in decision.candidates:
            if candidate is not survivor:
                others += [*((x, value(candidate)) for x in ends), (math.nan, math.nan)]
    if others:
        axes.plot(*zip(*others, strict=True), color=LIGHT["faint"], linewidth=0.7)
    axes.plot(*zip(*student, strict=True), color=colour)


def _ends(values: Array) -> tuple[float, float]:
    """The least and the greatest value."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _mass_words(mass: Array, bands: list[tuple[int, int]], most: int = 6) -> str:
    """The mass on a class of each of the first ranks."""
    known = [(interval_text(*band), mass[band[0] - 1]) for band in bands[:most]]
    return ", ".join(f"rank {ranks} {decimals(value, 4)}" for ranks, value in known)


def _draw_ranks(axes: Axes, ranks: Array, norm: Normalize, *, numbered: bool, separated: bool) -> None:
    """A cell for each candidate (row) and selection (column), the best strongest."""
    axes.imshow(ranks, aspect="auto", interpolation="none", cmap=RANKS, norm=norm)
    if separated:
        axes.set_xticks(np.arange(ranks.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(ranks.shape[0] + 1) - 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(visible=True, which="minor", color=LIGHT["panel"], linewidth=1.2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if numbered:
        for (row, column), rank in np.ndenumerate(ranks):
            if np.isfinite(rank):
                colour = "#ffffff" if norm(rank) < 0.1 else LIGHT["ink"]
                axes.text(column + 0.08, row, f"{rank:g}", color=colour, fontsize=8, ha="center", va="center")
