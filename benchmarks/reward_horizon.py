"""What the outcome of a decision says of it: judged at once, and after a cooldown.

    python -m benchmarks.reward_horizon RECIPE --data-root FILE.npz --moments 30 70 95

One student is trained under the parent's action. At each moment four copies go on for some epochs: two under a soft
target, two under a hard one, each soft one with the data order of a hard one. All are judged on held-out images, once
by averaged weights as a controller judges by default, and once after a cooldown (`controller.cooldown_epochs` = 1): an
epoch of the neutral target while the learning rate falls to zero. Printed is soft less hard.
"""

import argparse
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tfkd_fast.data import open_dataset
from tfkd_fast.device import resolve_compute
from tfkd_fast.methods.base import HoldoutMetrics, Interval
from tfkd_fast.methods.controlled.external import ExternalTargets
from tfkd_fast.methods.controlled.method import ControlledTargetsSettings
from tfkd_fast.runs.recipe import Recipe, load_recipe
from tfkd_fast.training.assemble import assemble
from tfkd_fast.training.cooldown import train_cooldown

COPIES = 4

Row = tuple[int, str, tuple[float, float]]
"""Epoch, how it was judged, and `difference`."""


class Branching:
    """A parent in slot 0 that can be copied, and copies that can be trained and judged."""

    def __init__(self, recipe: Recipe) -> None:
        settings = recipe.options
        assert isinstance(settings, ControlledTargetsSettings)
        compute = resolve_compute(recipe.device, recipe.precision, recipe.compile)
        dataset = open_dataset(recipe.data)
        parts = assemble(recipe, dataset, compute, lambda context: ExternalTargets(settings, context, COPIES))
        self.recipe, self.method, self.population = recipe, parts.method, parts.population
        self.judge, self.trainer = parts.judge, parts.epochs

    def train(self, epoch: int, actions: list[float], *, average: bool = False) -> None:
        """One epoch of as many copies as there are actions, which set the mass of the true class alone."""
        space = self.method.space
        wanted = torch.zeros(COPIES, space.action_size)
        wanted[: len(actions), space.action_names.index("true mass")] = torch.tensor(actions)
        self.method.actions = wanted
        self.plan = plan = replace(self.method.begin_interval(epoch), interval=Interval(epoch, 1, len(actions)))
        self.trainer.run(plan, epoch, self.recipe.learning_rates(epoch, self.trainer.steps(plan)), average=average)
        self.method.end_epoch([])

    def judge_at_once(self, epoch: int) -> list[HoldoutMetrics | None]:
        return self.judge.average_metrics(self.population.epoch_average, COPIES, epoch)

    def judge_cooled(self, epoch: int) -> list[HoldoutMetrics | None]:
        with train_cooldown(self.trainer, self.method, self.plan, epoch, self.recipe.learning_rate(epoch)):
            return self.judge.metrics(self.population.models)


def compare(
    branching: Branching, epoch: int, epochs: int, orders: tuple[int, int], soft: float, hard: float
) -> list[Row]:
    """Branch at `epoch`, judge, and go back."""
    method, population = branching.method, branching.population
    parent, end = population.state_dict(COPIES), epoch + epochs
    method.data_streams = [orders[0], orders[0], orders[1], orders[1]]
    for now in range(epoch, end):
        branching.train(now, [soft, hard, soft, hard], average=now == end - 1)
    outcomes = (("at once", branching.judge_at_once(end)), ("cooled", branching.judge_cooled(end)))
    population.load_state_dict(parent)
    method.data_streams = [0] * COPIES
    return [(epoch, name, difference(*pair)) for name, judged in outcomes for pair in (judged[:2], judged[2:])]


def difference(soft: HoldoutMetrics | None, hard: HoldoutMetrics | None) -> tuple[float, float]:
    """Of top-1 in points, and of the calibrated NLL."""
    assert soft is not None
    assert hard is not None
    return 100 * (soft.top1 - hard.top1), soft.calibrated_nll - hard.calibrated_nll


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root")
    parser.add_argument("--moments", type=int, nargs="+", default=[30, 70, 95], help="epochs")
    parser.add_argument("--epochs", type=int, default=1, help="that a decision lasts")
    parser.add_argument("--parent", type=float, default=0.0, help="action")
    parser.add_argument("--soft", type=float, default=-3.0, help="action")
    parser.add_argument("--hard", type=float, default=2.0, help="action")
    parser.add_argument("--pairs", type=int, default=4, help="an even number")
    asked = parser.parse_args()
    data = {"root": asked.data_root} if asked.data_root else {}
    branching = Branching(load_recipe(asked.recipe, {"controller": {"cooldown_epochs": 1}, "data": data}))
    rows: list[Row] = []
    for epoch in range(max(asked.moments) + 1):
        if epoch in asked.moments:
            branching.population.continue_from((0,))
            for pair in range(1, asked.pairs, 2):
                rows += compare(branching, epoch, asked.epochs, (pair, pair + 1), asked.soft, asked.hard)
        branching.train(epoch, [asked.parent])
    table = Table(
        "epoch", "judged", "top-1, points", "calibrated NLL", title="soft less hard, mean and its standard error"
    )
    for (epoch, name), of_moment in groupby(sorted(rows, key=lambda row: row[:2]), key=lambda row: row[:2]):
        values = np.array([values for _, _, values in of_moment])
        mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / len(values) ** 0.5
        table.add_row(str(epoch), name, f"{mean[0]:+.2f} ± {error[0]:.2f}", f"{mean[1]:+.4f} ± {error[1]:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
