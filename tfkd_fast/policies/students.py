"""Students that a caller steers interval by interval: the training behind `control.TargetControlEnv`."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple
from functools import partial

from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.data import open_dataset, sealed_test_images
from tfkd_fast.device import determinism, resolve_compute
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import EpochResult, HoldoutMetrics, IntervalResult, Plan, refuse_average
from tfkd_fast.methods.controlled.external import ExternalTargets
from tfkd_fast.methods.controlled.method import ControlledTargetsSettings
from tfkd_fast.ops import conv_algorithms
from tfkd_fast.ops.conv_algorithms import Choices
from tfkd_fast.randomness import seeded_layers
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.steering.control import Snapshot
from tfkd_fast.steering.targets import ActionSpace
from tfkd_fast.training.assemble import assemble, build_student
from tfkd_fast.training.cooldown import train_cooldown
from tfkd_fast.training.divergence import Diverged, output_fault
from tfkd_fast.training.epoch import EpochRun
from tfkd_fast.training.population import Population


class Students:
    """A `control.StudentFleet` of students of a recipe: each is a trajectory of its own, without selection.

    Data, network, optimiser, schedule, target, interval, warm-up and cooldown are the recipe's; its controller and its
    selection are not used. A student of seed s has the weights of a run of seed s, and the data order and augmentation
    of the random stream s under the recipe's seed. It is judged on held-out images by averaged weights or after the
    cooldown, as for a controller; test images stay sealed while it trains.
    """

    def __init__(self, recipe: Recipe, count: int = 1) -> None:
        """Prepare `count` >= 1 students.

        Raises:
            UserError: the recipe holds nothing out, or leaves nothing to steer.
        """
        if count < 1:
            raise ValueError(f"count must be 1 or more, got {count}")
        if not recipe.data.holdout:
            raise UserError("students are judged on held-out images: set data.holdout above 0")
        settings = recipe.options
        if not isinstance(settings, ControlledTargetsSettings):
            raise UserError(f"there is nothing to steer in method {recipe.method}: choose tfkd, or one of its kind")
        self.count, self.epochs = count, recipe.epochs
        self._recipe = recipe
        self._compute = compute = resolve_compute(recipe.device, recipe.precision, recipe.compile)
        self._choices: Choices = {}
        with self._training():
            ops.backend_of("soft_target_loss", compute.device)  # refuses a backend that cannot serve this device
            self.dataset = open_dataset(recipe.data)
            """The data set of the recipe."""
            parts = assemble(recipe, self.dataset, compute, lambda context: ExternalTargets(settings, context, count))
        self._choices, self._draws = parts.convolutions.record.choices, parts.draws
        self._build = partial(build_student, recipe, self.dataset, compute)
        self._method, self.population, self._judge = parts.method, parts.population, parts.judge
        self.trainer = parts.epochs
        self._untaught = self._method.state_dict()
        self.on_epoch: Callable[[int], None] | None = None
        """Called after every epoch with the number of epochs since `start`, summed over all students, cooldowns
        included."""
        self._epoch = self._trained = 0
        self._snapshots: list[Snapshot] = []  # empty before the start, and after a student diverged
        self.settings = settings
        """The tables of the recipe's method."""

    @property
    def space(self) -> ActionSpace:
        """The space of an action."""
        return self._method.space

    @property
    def action_names(self) -> tuple[str, ...]:
        """The names of the A numbers of an action."""
        return self.space.action_names

    @property
    def student_epochs(self) -> int:
        """The most epochs that whole runs of all students train, cooldowns included."""
        return self.count * sum(
            epochs + self._method.needs.cooldown_epochs for epochs in self._method.interval_epochs()
        )

    def start(self, seeds: Sequence[int]) -> list[Snapshot]:
        """Start new students, including the warm-up of the recipe; captured and compiled steps are reused.

        Args:
            seeds: one seed for each student, 0 .. 2**32 - 1.

        Raises:
            Diverged: a student diverged in the warm-up, which does not depend on actions.
        """
        if len(seeds) != self.count or not all(0 <= seed < 2**32 for seed in seeds):
            raise ValueError(f"seeds must be {self.count} numbers in 0 .. 2**32 - 1, got {list(seeds)}")
        candidates = [self._untrained_population(seed, 1).candidate(0) for seed in seeds]
        self.population.load_state_dict({"candidates": candidates, "epochs_averaged": 0})
        self._method.load_state_dict(self._untaught)
        self._method.data_streams = list(seeds)
        self._epoch, self._snapshots = 0, self._method.snapshots(0)
        self._trained = 0
        if self._method.warmup:
            self._train_interval()
            warmed_up = self._method.snapshots(self._epoch)
            fault = output_fault(f"after epoch {self._epoch}", self._compute)
            bad = {slot: fault for slot, snapshot in enumerate(warmed_up) if not _is_finite(snapshot)}
            if bad:
                self._snapshots = []
                raise Diverged(bad, self.count)
            self._snapshots = warmed_up
        return self._snapshots

    def train(self, actions: Tensor) -> list[Snapshot | None]:
        """Train for one decision interval under actions (P,A), see `control.StudentFleet.train`."""
        if not self._snapshots or self._epoch == self.epochs:
            raise RuntimeError("the students have not started, or are through: call start")
        if actions.shape != (self.count, len(self.action_names)):
            raise ValueError(f"actions must be ({self.count},{len(self.action_names)}), got {tuple(actions.shape)}")
        self._method.actions = actions
        before = self._snapshots
        try:
            self._train_interval()
        except Diverged as error:
            diverged = set(error.candidates)
        else:
            self._snapshots = self._method.snapshots(self._epoch)
            diverged = {slot for slot, snapshot in enumerate(self._snapshots) if not _is_finite(snapshot)}
        if not diverged:
            return list(self._snapshots)
        self._snapshots = []
        return [None if slot in diverged else snapshot for slot, snapshot in enumerate(before)]

    def _train_interval(self) -> None:
        with self._training():
            self.plan = plan = self._method.begin_interval(self._epoch)
            interval = plan.interval
            for epoch in range(interval.first_epoch, interval.end):
                rates = self._recipe.learning_rates(epoch, self.trainer.steps(plan))
                average = epoch + 1 == interval.end and "epoch" in self._method.needs.averages
                with self._seeded_layers(epoch):
                    runs = self.trainer.run(plan, epoch, rates, average=average)
                self._refuse_diverged(runs)
                self._method.end_epoch([EpochResult(run.training, None) for run in runs])
                self._count(len(runs))
            averages = self._judge.average_metrics(self.population.epoch_average, range(self.count), interval.end)
            cooldown_metrics = self._cooldown_metrics(plan)
            self._method.end_interval(
                [
                    IntervalResult(run.training, None, average, None, after_cooldown=metrics)
                    for run, average, metrics in zip(runs, averages, cooldown_metrics, strict=True)
                ],
                refuse_average,
            )
            self._epoch = interval.end

    def _cooldown_metrics(self, plan: Plan) -> list[HoldoutMetrics | None]:
        if not self._method.needs.cooldown_epochs:
            return [None] * self.count
        end = plan.interval.end
        seeded, rate = self._seeded_layers(end), self._recipe.learning_rate(end)
        with seeded, train_cooldown(self.trainer, self._method, plan, end, rate) as runs:
            self._refuse_diverged(runs)
            self._count(len(runs))
            return self._judge.metrics(self.population.models)

    def _seeded_layers(self, epoch: int) -> AbstractContextManager[None]:
        on_cuda = self._draws and self._compute.device.type == "cuda"
        return seeded_layers(self._recipe.seed, epoch, student=self._method.data_streams[0], on_cuda=on_cuda)

    def _refuse_diverged(self, runs: Sequence[EpochRun]) -> None:
        """Raise Diverged for students that diverged in epochs of all of them."""
        faults = {number % self.count: run.fault for number, run in enumerate(runs) if run.fault}
        if faults:
            raise Diverged(faults, self.count)

    def _count(self, epochs: int) -> None:
        self._trained += epochs
        if self.on_epoch is not None:
            self.on_epoch(self._trained)

    def _untrained_population(self, seed: int, size: int) -> Population:
        build, slow = partial(self._build, seed), self._method.needs.slow_decay is not None
        return Population(build, size, self._recipe.optimizer, slow=slow)

    @contextmanager
    def _training(self) -> Iterator[None]:
        backend, deterministic = ops.using_backend(self._recipe.ops), determinism(self._recipe.deterministic)
        with backend, deterministic, conv_algorithms.using(self._choices), sealed_test_images():
            yield


def _is_finite(snapshot: Snapshot) -> bool:
    return all(map(math.isfinite, astuple(snapshot.progress)))
