"""How much of a reward is the target, and how much is chance: from the logs of runs that compared candidates.

    python -m benchmarks.reward_noise RUN_DIR...

Candidates of one decision start from one parent. Where they were taught alike (cross-entropy with selection), what
their held-out figures differ by is chance: data order and augmentation. Where each had a target of its own, it is
chance and target. For every row of a study: the spread within a decision of the held-out accuracy and calibrated NLL
that a controller is rewarded by, and the share of it that a linear function of the action explains, beside the share
that as many random numbers would. Then, for each third of the runs, by how much a unit of each number of the action
changes them, with its standard error.
"""

import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tfkd_fast import load_run
from tfkd_fast.events import CandidateSelected, TargetsDecided

Array = np.ndarray[Any, np.dtype[np.float64]]


Decision = tuple[Array, Array]
"""Actions (P,A) and judged (P,2), top-1 in points and calibrated NLL, of several candidates."""

THIRDS = ("first", "second", "last")


def decisions(run: Path) -> list[Decision]:
    """In the order of the run."""
    events = load_run(run).events
    actions = {
        event.interval: np.array([candidate.action for candidate in event.candidates])
        for event in events
        if isinstance(event, TargetsDecided)
    }
    found = []
    for event in events:
        if isinstance(event, CandidateSelected):
            values = dict(zip(event.criteria, np.array(event.values).T, strict=True))
            judged = np.column_stack([100 * values["holdout-top1"], values["holdout-nll"]])
            found.append((actions.get(event.interval, np.zeros((len(judged), 0))), judged))
    return found


def centred(values: Array) -> Array:
    return values - values.mean(axis=0)


def spread(found: list[Decision]) -> Array:
    """(2,) standard deviation within a decision, pooled."""
    squares = sum((centred(judged) ** 2).sum(axis=0) for _, judged in found)
    freedom = sum(len(judged) - 1 for _, judged in found)
    return np.sqrt(squares / freedom)


def explained(found: list[Decision]) -> tuple[Array, float]:
    """(2,) share of the spread that a linear function of the action explains, and that of as many random numbers."""
    x = np.concatenate([centred(actions) for actions, _ in found])
    y = np.concatenate([centred(judged) for _, judged in found])
    freedom = len(y) - len(found)
    fitted = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return (fitted**2).sum(axis=0) / (y**2).sum(axis=0), x.shape[1] / freedom


def slopes(found: list[Decision]) -> tuple[Array, Array]:
    """(A,2) change of what is judged per unit of each number of the action, by least squares, and standard errors."""
    x = np.concatenate([centred(actions) for actions, _ in found])
    y = np.concatenate([centred(judged) for _, judged in found])
    slope = np.linalg.lstsq(x, y, rcond=None)[0]
    variance = ((y - x @ slope) ** 2).sum(axis=0) / (len(y) - len(found) - x.shape[1])
    return slope, np.sqrt(np.outer(np.diag(np.linalg.inv(x.T @ x)), variance))


def action_names(run: Path) -> tuple[str, ...]:
    return next(event.action_names for event in load_run(run).events if isinstance(event, TargetsDecided))


def main(runs: list[Path]) -> None:
    table = Table("runs", "decisions", "sd top-1", "sd NLL", "explained top-1", "explained NLL", "by chance")
    effects = Table("runs", "third", "number", "top-1 a unit", "NLL a unit")
    for name, group in groupby(sorted(runs), key=lambda run: run.name.rsplit("-seed", 1)[0]):
        of_row = list(group)
        of_runs = [decisions(run) for run in of_row]
        found = [decision for of_run in of_runs for decision in of_run]
        top1, nll = spread(found)
        cells = [name, str(len(found)), f"{top1:.2f}", f"{nll:.4f}"]
        if found[0][0].shape[1]:
            shares, chance = explained(found)
            cells += [f"{shares[0]:.3f}", f"{shares[1]:.3f}", f"{chance:.3f}"]
            for third, title in enumerate(THIRDS):
                part = [
                    d for of_run in of_runs for d in of_run[third * len(of_run) // 3 : (third + 1) * len(of_run) // 3]
                ]
                for number, slope, error in zip(action_names(of_row[0]), *slopes(part), strict=True):
                    cells_of = [f"{slope[0]:+.2f} ± {error[0]:.2f}", f"{slope[1]:+.4f} ± {error[1]:.4f}"]
                    effects.add_row(name, title, number, *cells_of)
        table.add_row(*cells)
    Console().print(table)
    if effects.row_count:
        Console().print(effects)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
