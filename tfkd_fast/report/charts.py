"""The charts of a run. Each function returns None where the run has nothing for it to show."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from tfkd_fast.report.drawing import LIGHT, inline_svg
from tfkd_fast.report.run import DecidedCandidate, Decision, Epoch, Run
from tfkd_fast.targets.rank_binned import bin_starts

Array = NDArray[np.float64]

HALF, FULL = 5.4, 11.0
"""Widths in inches of a chart in one column and of one across the page."""
MOST_ROW_LABELS = 12
MOST_NUMBERED_COLUMNS = 24
NOTICEABLE_RISE = 1e-6
"""Nats by which a divergence has to grow to count as risen: above the rounding of single precision."""


@dataclass(frozen=True)
class Chart:
    """One figure of the page."""

    title: str
    note: str
    svg: Markup
    wide: bool = False


def accuracy_chart(run: Run) -> Chart | None:
    """Training and held-out top-1 of the surviving lineage, the other candidates behind it."""
    student = run.student
    if not student:
        return None
    epochs = [record.epoch for record in student]
    train = [record.train_top1 for record in student]
    holdout = [_holdout(record, "top1") for record in student]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _mark_drops(axes, run)
        _others(axes, run, lambda record: _holdout(record, "top1"))
        axes.plot(epochs, train, color=LIGHT["vermilion"], linestyle=(0, (4, 1.5)), label="training", **_dot(epochs))
        if _any(holdout):
            axes.plot(epochs, holdout, color=LIGHT["blue"], label="held-out", **_dot(epochs))
        axes.set_ylabel("top-1, %")
        _epoch_axis(axes)
        _legend(axes)

    label = f"Line chart of top-1 accuracy over epochs. Training: {_course(epochs, train, ' %')}."
    if _any(holdout):
        label += f" Held-out: {_course(epochs, holdout, ' %')}."
    note = "Training accuracy is taken in passing, on augmented images."
    return Chart("Accuracy", note, inline_svg("accuracy", label, (HALF, 3.3), paint))


def loss_chart(run: Run) -> Chart | None:
    """Training loss, held-out NLL and calibrated NLL of the surviving lineage."""
    student = run.student
    if not student:
        return None
    epochs = [record.epoch for record in student]
    train = [record.train_loss for record in student]
    nll = [_holdout(record, "nll") for record in student]
    calibrated = [_holdout(record, "calibrated_nll") for record in student]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _mark_drops(axes, run)
        _others(axes, run, lambda record: _holdout(record, "calibrated_nll"))
        axes.plot(epochs, train, color=LIGHT["vermilion"], linestyle=(0, (4, 1.5)), label="training", **_dot(epochs))
        if _any(nll):
            axes.plot(epochs, nll, color=LIGHT["green"], linestyle=(0, (1, 1)), label="held-out NLL", **_dot(epochs))
            axes.plot(epochs, calibrated, color=LIGHT["blue"], label="held-out NLL, calibrated", **_dot(epochs))
        _log_axis(axes, [*train, *nll, *calibrated])
        axes.set_ylabel("nats")
        _epoch_axis(axes)
        _legend(axes)

    label = f"Line chart of losses over epochs. Training: {_course(epochs, train)}."
    if _any(nll):
        label += f" Held-out NLL: {_course(epochs, nll)}. Calibrated: {_course(epochs, calibrated)}."
    note = "The training loss is the divergence from the target of its epoch, so it moves with the target, too."
    return Chart("Loss", note, inline_svg("loss", label, (HALF, 3.3), paint))


def calibration_chart(run: Run) -> Chart | None:
    """Held-out ECE and the temperature that calibrates."""
    student = [record for record in run.student if record.holdout]
    if not student:
        return None
    epochs = [record.epoch for record in student]
    ece = [_holdout(record, "ece") for record in student]
    temperature = [_holdout(record, "temperature") for record in student]

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, sharex=True)
        for axes in (top, bottom):
            _mark_drops(axes, run)
        top.plot(epochs, ece, color=LIGHT["blue"], **_dot(epochs))
        top.set_ylim(bottom=0)
        top.set_ylabel("ECE")
        bottom.axhline(1, color=LIGHT["muted"], linewidth=0.8)
        bottom.plot(epochs, temperature, color=LIGHT["purple"], **_dot(epochs))
        bottom.set_ylabel("temperature")
        _epoch_axis(bottom)

    label = (
        f"Line charts over epochs. Held-out expected calibration error: {_course(epochs, ece)}. "
        f"Calibrating temperature: {_course(epochs, temperature)}."
    )
    note = "Expected calibration error, and the temperature that would calibrate: above 1 is over-confident."
    return Chart("Calibration, held-out", note, inline_svg("calibration", label, (HALF, 3.0), paint))


def pace_chart(run: Run) -> Chart | None:
    """Learning rate and training speed."""
    student = run.student
    if not student:
        return None
    epochs = [record.epoch for record in student]
    rates = [record.learning_rate for record in student]
    speeds = [record.images_per_second for record in student]

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, sharex=True)
        top.step(epochs, rates, where="mid", color=LIGHT["purple"], **_dot(epochs))
        _log_axis(top, rates)
        top.set_ylabel("learning rate")
        bottom.plot(epochs, speeds, color=LIGHT["green"], **_dot(epochs))
        bottom.set_ylim(bottom=0)
        bottom.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        bottom.set_ylabel("images/s")
        _epoch_axis(bottom)

    label = (
        f"Line charts over epochs. Learning rate: {_course(epochs, rates)}. "
        f"Training speed in images a second: {_course(epochs, speeds)}."
    )
    note = "Speed while training, without evaluation; the first epoch includes warming up."
    return Chart("Learning rate and speed", note, inline_svg("pace", label, (HALF, 3.0), paint))


def target_chart(run: Run) -> Chart | None:
    """The surviving lineage's target distribution over time, and where it moved away from the one-hot label."""
    if not run.decisions:
        return None
    taught = [run.survivor(decision) for decision in run.decisions]
    first, last = run.decisions[0].first_epoch, _end(run.decisions[-1])
    mass = np.full((len(taught[0].mass_by_rank), last - first + 1), np.nan)
    for decision, target in zip(run.decisions, taught, strict=True):
        mass[:, decision.first_epoch - first : _end(decision) - first + 1] = np.array(target.mass_by_rank)[:, None]
    bands = rank_bands(mass[1:])
    rises = risen(run)

    def paint(figure: Figure) -> None:
        rows = max(2.2, min(4.5, 0.45 * len(bands)))
        grid = figure.add_gridspec(4, 2, width_ratios=(75, 1), height_ratios=(0.55, rows, 1.5, 1.5))
        true_class, others, true_mass, divergence = (figure.add_subplot(grid[row, 0]) for row in range(4))
        extent = (first - 0.5, last + 0.5)
        _mass_image(true_class, figure.add_subplot(grid[0, 1]), mass[:1], extent, log=False)
        true_class.set_yticks([0.5], ["true class"])
        rows_of_bands = np.array([mass[band_first] for band_first, _ in bands])
        _mass_image(others, figure.add_subplot(grid[1, 1]), rows_of_bands, extent, log=True)
        others.set_yticks(*_band_ticks(bands))
        others.set_ylabel("similarity rank")
        _step_curve(true_mass, run, lambda candidate: candidate.true_mass, LIGHT["blue"])
        true_mass.set_ylabel("true-class mass")
        divergence.broken_barh(
            [(decision.first_epoch - 0.5, decision.epochs) for decision in rises],
            (0, 1),
            transform=divergence.get_xaxis_transform(),
            facecolor=LIGHT["rise"],
            edgecolor="none",
            zorder=0,
        )
        _step_curve(divergence, run, lambda candidate: candidate.divergence, LIGHT["vermilion"])
        divergence.set_ylim(bottom=0)
        divergence.set_ylabel("divergence, nats")
        for axes in (true_class, others, true_mass):
            axes.sharex(divergence)
            axes.tick_params(labelbottom=False)
        divergence.set_xlim(*extent)
        _epoch_axis(divergence)
        figure.align_ylabels()

    masses = [target.true_mass for target in taught]
    label = (
        f"Heat map of the target's mass by similarity rank over epochs {first} to {last}, with curves below it. "
        f"True-class mass: {_course([decision.first_epoch for decision in run.decisions], masses)}. "
        f"The divergence from the one-hot label rose at {len(rises)} decisions."
    )
    note = (
        "Mass on each class, a mean over the labels: the true class, then the others from the most similar one on; "
        "neighbouring ranks that were always taught alike share a row. Divergence is KL(one-hot ‖ target); "
        "where it rose from one decision to the next, the interval is shaded. Thin lines are the other candidates."
    )
    height = 4.2 + max(2.2, min(4.5, 0.45 * len(bands))) * 0.7
    return Chart("Target distribution", note, inline_svg("target", label, (FULL, height), paint), wide=True)


def risen(run: Run) -> list[Decision]:
    """The decisions that took the lineage's target further from the one-hot label than the decision before."""
    decided = [decision for decision in run.decisions if run.survivor(decision).role != "warm-up"]
    return [
        now
        for before, now in pairwise(decided)
        if run.survivor(now).divergence > run.survivor(before).divergence + NOTICEABLE_RISE
    ]


def rank_bands(mass: Array) -> list[tuple[int, int]]:
    """Groups (first, last) of neighbouring ranks, from 1, whose masses (C-1, epochs) were equal all along."""
    if not len(mass):
        return []
    alike = np.isclose(mass[1:], mass[:-1], rtol=1e-4, atol=0.0, equal_nan=True).all(axis=1)
    starts = [1, *(np.flatnonzero(~alike) + 2).tolist()]
    return list(zip(starts, [start - 1 for start in starts[1:]] + [len(mass)], strict=True))


def ranking_chart(run: Run) -> Chart | None:
    """The rank of every candidate under every criterion at every selection."""
    if not run.selections:
        return None
    criteria = run.selections[-1].criteria
    candidates = max(len(selection.scores) for selection in run.selections)
    panels = ["Borda score", *criteria]
    events = len(run.selections)
    ranks = np.full((len(panels), candidates, events), np.nan)
    for column, selection in enumerate(run.selections):
        ranks[0, : len(selection.scores), column] = selection.scores
        for row, criterion in enumerate(criteria):
            if criterion in selection.criteria:
                position = selection.criteria.index(criterion)
                ranks[row + 1, : len(selection.ranks), column] = [of[position] for of in selection.ranks]
    wins = Counter(selection.winner for selection in run.selections)
    names = [name for name in candidate_names(run, candidates)]

    def paint(figure: Figure) -> None:
        for axes, name, values in zip(np.ravel(figure.subplots(len(panels), sharex=True)), panels, ranks, strict=True):
            low, high = _extent(values, (1.0, float(candidates)))
            norm = Normalize(low, high)
            axes.imshow(values, aspect="auto", interpolation="none", cmap="viridis_r", norm=norm)
            axes.set_title(name, color=LIGHT["ink"])
            axes.set_yticks(range(candidates), names)
            axes.set_xticks(np.arange(events) - 0.5, minor=True)
            axes.set_yticks(np.arange(candidates) - 0.5, minor=True)
            axes.grid(visible=False)
            axes.grid(visible=True, which="minor", color=LIGHT["panel"], linewidth=1.2)
            axes.tick_params(which="both", length=0)
            axes.spines[:].set_visible(False)
            if events <= MOST_NUMBERED_COLUMNS:
                _number_cells(axes, values, norm)
        top = figure.axes[0]
        won_at = [selection.winner for selection in run.selections]
        offset = 0.3 if events <= MOST_NUMBERED_COLUMNS else 0.0
        top.scatter(
            np.arange(events) - offset, won_at, s=26, marker="o", color="#ffffff", edgecolors="#000000", linewidths=1.0
        )
        bottom = figure.axes[-1]
        bottom.xaxis.set_major_locator(MaxNLocator(min(events, 16), integer=True))
        ends = [selection.epoch for selection in run.selections]
        bottom.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: str(ends[int(value)]) if value in range(events) else "")
        )
        bottom.set_xlabel("epoch of the selection")

    counts = ", ".join(f"{name}: {wins[slot]}" for slot, name in enumerate(names))
    label = f"Matrix of candidate ranks at {events} selections, a row for each candidate. Selections won by {counts}."
    note = (
        "Rank of each candidate under each criterion, 1 the best, bright to dark. Their weighted sum is the Borda "
        "score, lowest first; a white dot marks the candidate that training continued from."
    )
    height = 0.6 + min(10.0, len(panels) * (0.3 + 0.2 * candidates))
    return Chart("Candidates, ranked", note, inline_svg("ranking", label, (FULL, height), paint), wide=True)


def action_chart(run: Run) -> Chart | None:
    """The controller's action over time, one row a dimension."""
    decisions = [decision for decision in run.decisions if run.survivor(decision).action]
    if not decisions:
        return None
    names = action_names(run, len(run.survivor(decisions[0]).action))
    middles = [decision.first_epoch + (decision.epochs - 1) / 2 for decision in decisions]

    def paint(figure: Figure) -> None:
        rows = np.ravel(figure.subplots(len(names), sharex=True, sharey=True, squeeze=False))
        for dimension, (axes, name) in enumerate(zip(rows, names, strict=True)):
            axes.axhline(0, color=LIGHT["muted"], linewidth=0.6)
            tried = [
                (middle, candidate.action[dimension])
                for middle, decision in zip(middles, decisions, strict=True)
                for candidate in decision.candidates
            ]
            axes.plot(*zip(*tried, strict=True), ".", color=LIGHT["faint"], markersize=3)
            chosen = [run.survivor(decision).action[dimension] for decision in decisions]
            axes.plot(middles, chosen, color=LIGHT["blue"], linewidth=1.2, **_dot(middles))
            axes.set_ylabel(name, rotation=0, ha="right", va="center", color=LIGHT["ink"])
        _epoch_axis(rows[-1])

    last = ", ".join(
        f"{name} {value:.2f}" for name, value in zip(names, run.survivor(decisions[-1]).action, strict=True)
    )
    label = f"Line charts of the action over epochs, one for each of {len(names)} dimensions. The last action: {last}."
    note = "The surviving candidate's action (line) among all that were tried (dots); 0 is the neutral action."
    height = 0.6 + max(1.8, min(9.0, len(names) * 0.62))
    return Chart("Actions", note, inline_svg("actions", label, (HALF, height), paint))


def reward_chart(run: Run) -> Chart | None:
    """Rewards of every candidate, and the figures of the policy's updates."""
    if not run.rewards:
        return None
    ends = {decision.interval: _end(decision) for decision in run.decisions}
    rewards = [reward for reward in run.rewards if reward.interval in ends]
    updates = [reward for reward in rewards if reward.update]
    figures = sorted({name for reward in updates for name in reward.update or {}})
    figures = [name for name in figures if len({(reward.update or {}).get(name) for reward in updates}) > 1]
    survivors = [
        (ends[reward.interval], reward.rewards[run.winners.get(reward.interval, 0)]) for reward in rewards
    ]
    everyone = [(ends[reward.interval], value) for reward in rewards for value in reward.rewards]

    def paint(figure: Figure) -> None:
        ratios = [2.2, *[1.0] * len(figures)]
        rows = np.ravel(figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios))
        rows[0].axhline(0, color=LIGHT["muted"], linewidth=0.6)
        rows[0].plot(*zip(*everyone, strict=True), ".", color=LIGHT["faint"], markersize=4)
        rows[0].plot(*zip(*survivors, strict=True), ".-", color=LIGHT["vermilion"], linewidth=0.8, markersize=4)
        rows[0].set_ylabel("reward", rotation=0, ha="right", va="center", color=LIGHT["ink"])
        for axes, name in zip(rows[1:], figures, strict=True):
            axes.plot(
                [ends[reward.interval] for reward in updates],
                [(reward.update or {}).get(name, math.nan) for reward in updates],
                color=LIGHT["purple"],
                linewidth=1.2,
                **_dot(updates),
            )
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.set_ylabel(name.replace("_", " "), rotation=0, ha="right", va="center", color=LIGHT["ink"])
        _epoch_axis(rows[-1])

    label = f"Rewards of the candidates over epochs; the survivors': {_course(*zip(*survivors, strict=True))}."
    if figures:
        label += f" Below, figures of {len(updates)} policy updates: {', '.join(figures)}."
    note = "The surviving candidate's reward (line) among all candidates' (dots)"
    note += "; below, the policy's updates." if figures else "."
    height = 0.6 + 1.4 + 0.6 * len(figures)
    return Chart("Rewards and learning" if figures else "Rewards", note, inline_svg("rewards", label, (HALF, height), paint))
