"""What a judgement of a decision says of the student at the end of the run, and what it costs.

    python -m benchmarks.reward_horizon RECIPE --data-root FILE.npz --moments 30 55 80 --out FILE.json

One student is trained by a schedule of the true-class mass. At each moment copies of it go on for some epochs, each
under a mass of its own and all with the same data order. Every copy is judged in each of these ways, always by the same
few held-out images, and as a difference to the copy under the neutral mass:

* at once;
* by the average of its weights over its last epoch, as a controller judges by default;
* after a cooldown: some epochs, or a part of one, of the neutral target while the learning rate falls to zero;
* with its classifier fitted anew to hard labels, on features of some training images that are computed once.

Then every copy trains to the end of the run by the same schedule, and is judged by the other held-out images. Printed
is, for each way, the rank correlation with that over the copies of a moment, and its price in student-epochs a copy.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn

from tfkd_fast.data import Loader, open_dataset
from tfkd_fast.device import resolve_compute
from tfkd_fast.judging.metrics import holdout_metrics, load_averaged_weights
from tfkd_fast.methods.base import HoldoutMetrics, Interval
from tfkd_fast.methods.controlled.external import ExternalTargets
from tfkd_fast.methods.controlled.method import ControlledTargetsSettings
from tfkd_fast.ops import conv_algorithms
from tfkd_fast.runs.recipe import Recipe, load_recipe
from tfkd_fast.training.assemble import assemble, build_student
from tfkd_fast.training.cooldown import train_cooldown
from tfkd_fast.training.epoch import EpochTrainer
from tfkd_fast.training.groups import choose_side_by_side

NEUTRAL = 0.9
"""True-class mass of the control."""

FEATURES = 3000
"""Training images that a classifier is fitted anew to."""

FORWARD = 1 / 3
"""Price of a forward pass as a share of a training step."""


@dataclass(frozen=True)
class Way:
    """A way to judge copies."""

    name: str
    price: float
    """Student-epochs for each copy."""
    judge: Callable[[int], list[HoldoutMetrics]]
    """Judges all copies after so many epochs of the run, and leaves them as they are."""


class Branching:
    """A student in slot 0, and copies of it that train and are judged."""

    def __init__(self, recipe: Recipe, copies: int, judge_by: int) -> None:
        """`judge_by`: held-out images of each class that decisions are judged by; the others judge final students."""
        settings = recipe.options
        assert isinstance(settings, ControlledTargetsSettings)
        self.recipe = recipe
        self.compute = compute = resolve_compute(recipe.device, recipe.precision, recipe.compile)
        dataset = open_dataset(recipe.data)
        self.parts = parts = assemble(
            recipe, dataset, compute, lambda context: ExternalTargets(settings, context, copies)
        )
        self.method, self.population, self.trainer = parts.method, parts.population, parts.epochs
        assert parts.images.holdout is not None
        self.few, self.others = split_by_class(parts.images.holdout, judge_by)
        self.build = partial(build_student, recipe, dataset, compute, recipe.seed)
        self.scratch = self.build()

    def train(self, epoch: int, masses: Sequence[float], *, average: bool = False) -> None:
        """One epoch of as many copies as there are masses."""
        space = self.method.space
        actions = [space.action_for_true_mass(mass) for mass in masses]
        self.method.actions = torch.stack(actions + [actions[0]] * (len(self.population) - len(actions)))
        self.method.data_streams = [0] * len(self.population)
        self.plan = plan = replace(self.method.begin_interval(epoch), interval=Interval(epoch, 1, len(masses)))
        self.trainer.run(plan, epoch, self.recipe.learning_rates(epoch, self.trainer.steps(plan)), average=average)
        self.method.end_epoch([])

    def final(self) -> list[HoldoutMetrics]:
        """Judge all copies by the images that no decision is judged by."""
        return holdout_metrics(self.population.models, self.others, self.compute)

    def ways(self, cooldowns: Sequence[float]) -> list[Way]:
        """All ways to judge."""
        images, judged = self.parts.images.num_fit, len(self.few.order(0)) / self.parts.images.num_fit
        few = FORWARD * min(FEATURES, images) / images
        plain = FORWARD * judged
        return [
            Way("at once", plain, lambda epoch: holdout_metrics(self.population.models, self.few, self.compute)),
            Way(
                "averaged weights", plain, lambda epoch: holdout_metrics(self._averages(epoch), self.few, self.compute)
            ),
            Way("classifier fitted anew", plain + few, lambda epoch: self._fitted_anew(self.population.models, epoch)),
            Way("both", plain + few, lambda epoch: self._fitted_anew(self._averages(epoch), epoch)),
            *(Way(f"cooldown of {epochs:g}", plain + epochs, partial(self._cooled, epochs)) for epochs in cooldowns),
        ]

    def _averages(self, epoch: int) -> Iterator[nn.Module]:
        """The average of each copy's weights over its last epoch, in one network after the other."""
        for slot in range(len(self.population)):
            order = self.parts.loader.order(epoch)[:1024]
            weights = self.population.epoch_average.mean_weights(slot)
            yield load_averaged_weights(self.scratch, weights, self.parts.loader.visit(order, epoch), self.compute)

    def _fitted_anew(self, models: Any, epoch: int) -> list[HoldoutMetrics]:
        metrics = []
        order = self.parts.loader.order(epoch)[:FEATURES]
        for model in models:
            network = self.build()
            network.load_state_dict(model.state_dict())
            features, labels = _features(network, self.parts.loader.visit(order, epoch), self.compute)
            fit_classifier(network.get_submodule("classifier"), features, labels, self.recipe.optimizer.weight_decay)
            metrics += holdout_metrics([network], self.few, self.compute)
        return metrics

    def _cooled(self, epochs: float, epoch: int) -> list[HoldoutMetrics]:
        trainer, method = self.trainer, copy.copy(self.method)
        if epochs < 1:
            chosen = self.parts.loader.order(epoch)
            loader = self.parts.loader.with_indices(chosen[: round(epochs * len(chosen))].sort().values)
            side = choose_side_by_side(self.recipe.population)
            trainer = EpochTrainer(self.population, self.method, loader, self.compute, self.recipe.optimizer, side)
        method.needs = replace(method.needs, cooldown_epochs=max(1, round(epochs)))
        with train_cooldown(trainer, method, self.plan, epoch, self.recipe.learning_rate(epoch)):
            return holdout_metrics(self.population.models, self.few, self.compute)


def split_by_class(loader: Loader, count: int) -> tuple[Loader, Loader]:
    """The first images of each class, and the others."""
    labels = torch.cat([batch.labels for batch in loader.in_order()])
    seen = torch.zeros(int(labels.max()) + 1, dtype=torch.int64)
    first = torch.zeros(len(labels), dtype=torch.bool)
    for place, label in enumerate(labels.tolist()):
        first[place] = seen[label] < count
        seen[label] += 1
    return loader.with_indices(first.nonzero().squeeze(1)), loader.with_indices((~first).nonzero().squeeze(1))


@torch.no_grad()
def _features(network: nn.Module, batches: Any, compute: Any) -> tuple[Tensor, Tensor]:
    """The pooled features (N,D) float32 of augmented training images, and their labels."""
    network.eval()
    features, labels = [], []
    for batch in batches:
        with compute.autocast():
            features.append(network(batch.images, return_features=True)[1].pooled.float())
        labels.append(batch.labels)
    return torch.cat(features), torch.cat(labels)


def fit_classifier(classifier: nn.Module, features: Tensor, labels: Tensor, weight_decay: float) -> None:
    """Fit a linear layer to hard labels, from the weights that it has: cross-entropy plus half of `weight_decay` times
    the squared norm of its weights."""
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        norm = sum(parameter.square().sum() for parameter in classifier.parameters())
        loss = F.cross_entropy(classifier(features), labels) + 0.5 * weight_decay * norm
        loss.backward()
        return loss

    optimizer.step(closure)


def study(branching: Branching, moments: Sequence[int], masses: Sequence[float], epochs: int, asked: Any) -> list[dict]:
    """One record for each moment: the masses, what each way says of the copies, and what they are at the end."""
    population, records = branching.population, []
    run = branching.recipe.epochs
    ways = branching.ways(asked.cooldowns)

    def mass_at(epoch: int) -> float:
        return asked.soft if epoch < asked.switch * run else asked.hard

    for epoch in range(max(moments) + 1):
        if epoch in moments:
            parent = population.state_dict(1)
            population.continue_from((0,))
            for now in range(epoch, epoch + epochs):
                branching.train(now, masses, average=now == epoch + epochs - 1)
            judged = {way.name: _figures(way.judge(epoch + epochs)) for way in ways}
            for now in range(epoch + epochs, run):
                branching.train(now, [mass_at(now)] * len(masses))
            final = _figures(branching.final())
            records.append(
                {"moment": epoch, "epochs": epochs, "masses": list(masses), "judged": judged, "final": final}
            )
            population.load_state_dict(parent)
        branching.train(epoch, [mass_at(epoch)])
    return records


def _figures(metrics: Sequence[HoldoutMetrics]) -> dict[str, list[float]]:
    return {"top1": [m.top1 for m in metrics], "nll": [m.calibrated_nll for m in metrics]}


def correlations(records: Sequence[dict], way: str, figure: str, final: str) -> list[float]:
    """Spearman's correlation of a figure of a way with one at the end, for each moment; above 0 where they agree."""
    sign = 1.0 if (figure == "nll") == (final == "nll") else -1.0
    return [
        sign * float(spearmanr(record["judged"][way][figure], record["final"][final]).statistic) for record in records
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--moments", type=int, nargs="+", default=[30, 55, 80], help="epochs")
    parser.add_argument("--epochs", type=int, default=5, help="that a decision lasts")
    parser.add_argument("--masses", type=float, nargs="+", default=[0.55, 0.65, 0.75, NEUTRAL, 0.97, 0.995])
    parser.add_argument("--cooldowns", type=float, nargs="+", default=[0.25, 1.0, 2.0], help="epochs")
    parser.add_argument("--soft", type=float, default=NEUTRAL, help="mass of the schedule before the switch")
    parser.add_argument("--hard", type=float, default=NEUTRAL, help="mass of the schedule after the switch")
    parser.add_argument("--switch", type=float, default=0.75, help="share of the run")
    parser.add_argument("--judge-by", type=int, default=30, help="held-out images of each class")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file of all figures, which further seeds are added to"
    )
    asked = parser.parse_args()
    content = json.loads(asked.out.read_text()) if asked.out.exists() else {"records": [], "prices": {}}
    for seed in asked.seeds:
        overrides: dict[str, Any] = {"seed": seed} | ({"data": {"root": asked.data_root}} if asked.data_root else {})
        branching = Branching(load_recipe(asked.recipe, overrides), len(asked.masses), asked.judge_by)
        with conv_algorithms.using(branching.parts.convolutions.record.choices):
            records = study(branching, asked.moments, asked.masses, asked.epochs, asked)
        content["records"] += [record | {"seed": seed} for record in records]
        content["prices"] = {way.name: way.price for way in branching.ways(asked.cooldowns)}
        asked.out.write_text(json.dumps(content, indent=1) + "\n")
    show(content)


def show(content: dict[str, Any]) -> None:
    """Print the rank correlations, mean and standard error over moments and seeds, by moment and in all."""
    records = content["records"]
    moments = sorted({record["moment"] for record in records})
    table = Table("judged", "by", "student-epochs", *(f"from {moment}" for moment in moments), "all", "all, final NLL")
    for way, price in content["prices"].items():
        for figure in ("top1", "nll"):
            cells = []
            for chosen in [*([record for record in records if record["moment"] == m] for m in moments), records]:
                values = np.array(correlations(chosen, way, figure, "top1"))
                error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
                cells.append(f"{values.mean():+.2f} ± {error:.2f}")
            nll = np.mean(correlations(records, way, figure, "nll"))
            table.add_row(way, figure, f"{price:.2f}", *cells, f"{nll:+.2f}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
