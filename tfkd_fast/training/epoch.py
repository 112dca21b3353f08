"""One epoch of all candidates: which of them take their steps together, and the statistics and costs of the epoch."""

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from threading import Event

import torch

from tfkd_fast.data import DataStream, Loader, Mixing
from tfkd_fast.device import Compute
from tfkd_fast.finiteness import nonfinite_names
from tfkd_fast.methods.base import Method, Plan, TrainingStatistics
from tfkd_fast.runs.optimizer import OptimizerSettings
from tfkd_fast.teachers.teacher import Teachers
from tfkd_fast.threads import run_at_once, until
from tfkd_fast.training.adapters import Adapters
from tfkd_fast.training.capture import RepeatedStep, Streams, branches
from tfkd_fast.training.divergence import Fault, input_fault, loss_fault, state_fault
from tfkd_fast.training.feed import Feed, make_feed
from tfkd_fast.training.gradient_sum import GradientSum
from tfkd_fast.training.groups import Group, GroupSpec, SideBySide, joint_group, single_group, stacked_group
from tfkd_fast.training.holdout import HoldoutBatches
from tfkd_fast.training.lookahead_step import Trial
from tfkd_fast.training.population import Population
from tfkd_fast.training.ranks import ALONE, Ranks
from tfkd_fast.training.shared_batches import SharedBatches
from tfkd_fast.training.step import Records, StepSetup, Turn, train_step, turns_of, update_group


@dataclass(frozen=True)
class EpochRun:
    """Statistics and costs of one epoch of one candidate."""

    training: TrainingStatistics
    images: int
    """The number of images that `seconds` were spent on."""
    seconds: float
    """Seconds of training; for candidates that trained at the same time, an equal share."""
    set_up_seconds: float
    """Seconds of first steps, which compile or capture; for candidates that trained at the same time, an equal share.
    They are no part of `seconds`."""
    fault: Fault | None = None
    """Why the candidate counts as diverged; None as long as its losses, weights, statistics and optimiser
    state are finite."""


class EpochTrainer:
    """Trains the candidates of a population, an epoch at a time."""

    def __init__(
        self,
        population: Population,
        method: Method,
        loader: Loader,
        compute: Compute,
        settings: OptimizerSettings,
        side_by_side: SideBySide,
        on_batch: Callable[[int], None] | None = None,
        *,
        adapters: Adapters | None = None,
        teachers: Teachers | None = None,
        holdout: Loader | None = None,
        mixing: Mixing | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """`on_batch`, where there is one, is called after each step with its number of images, summed over the
        candidates that took it.

        `adapters`, `teachers` and the held-out images that the method may look at are those of the run; a method that
        has none does without. Of several processes, `ranks`, each trains its own candidates, or its part of all.
        """
        self._ranks = ranks
        self._shared = ranks if isinstance(ranks, SharedBatches) else None
        self.population, self.loader, self.side_by_side = population, loader, side_by_side
        self._compute, self._on_batch, self._mixing = compute, on_batch, mixing
        self._setup = StepSetup(
            method,
            compute,
            settings,
            adapters or Adapters(method.adapters, settings),
            teachers or Teachers((), compute, loader.batch_size),
            HoldoutBatches(holdout) if holdout is not None and method.needs.look_ahead else None,
            self._shared or ALONE,
        )
        captured = compute.device.type == "cuda" and not method.needs.look_ahead and self._shared is None
        self._streams = Streams() if captured else None
        self._lanes: dict[Hashable, list[Lane]] = {}

    def steps(self, plan: Plan) -> int:
        """The number of steps of an epoch on the images that a plan trains on."""
        return len(self._loader_of(plan))

    def run(
        self, plan: Plan, epoch: int, learning_rates: list[float], *, average: bool, report_batches: bool = True
    ) -> list[EpochRun]:
        """Train the candidates of a plan for the 0-based `epoch`, with a learning rate for every step.

        Args:
            learning_rates: the rates of the schedule, one for each step; the plan has a factor for each candidate.
            average: whether `population.epoch_average` becomes the mean of the weights after each step.
            report_batches: whether `on_batch` is called.

        Returns:
            A result for each candidate. All processes have what the epoch made of it.

        A candidate that diverges trains to the end of the epoch, like the others; see `EpochRun.fault`.
        """
        population, setup, candidates = self.population, self._setup, plan.interval.candidates
        if average:
            population.epoch_average.restart()
        for model in [*population.models[:candidates], *population.slow_models[:candidates]]:
            model.train()
        setup.adapters.train()
        setup.teachers.start(epoch, plan.teachers)
        if setup.holdout is not None:
            setup.holdout.start(epoch)
        known = len(self._lanes)
        lanes = self.lanes(plan, average=average)
        every = setup.optimizer.accumulate  # all batches of an update have the rate of the first one
        learning_rates = [learning_rates[step - step % every] for step in range(len(learning_rates))]
        rates = [[factor * rate for rate in learning_rates] for factor in plan.factors]
        on_batch = self._on_batch if report_batches else None
        runs: list[EpochRun] = []
        if self.side_by_side == "streams" and len(lanes) > 1:
            calls = [partial(lane.run, epoch, plan.streams, rates, on_batch) for lane in lanes]
            runs += _run_at_once(calls, in_turn=len(self._lanes) > known and self._compute.compile)
        else:
            for lane in lanes:
                runs += lane.run(epoch, plan.streams, rates, on_batch)
        if average:
            population.epoch_average.count = -(-len(learning_rates) // every)
        examined = [self._examine(*pair, epoch) for pair in zip(self._ranks.own(candidates), runs, strict=True)]
        slowest = max(self._ranks.gather([sum(run.seconds + run.set_up_seconds for run in examined)]))
        self._exchange(plan, epoch, average=average)
        return _share_time(self._ranks.of_candidates(examined), slowest)

    def _exchange(self, plan: Plan, epoch: int, *, average: bool) -> None:
        """Give all processes what the epoch changed of each candidate and of the adapters."""
        method, shared, candidates = self._setup.method, self._shared, plan.interval.candidates
        changed = self.population.changed_by_epoch(average=average)
        if shared is None:
            changed += method.candidate_tensors().values()
        else:
            for sums in method.sample_sums():
                shared.add(sums)
            for slot, stream in enumerate(plan.streams if method.image_rows() else ()):
                rows = [table[slot] for table in method.image_rows()]
                shared.exchange_rows(rows, self._loader_of(plan), epoch, stream.order)
            changed += [tensor.unsqueeze(0) for _, tensor in self._setup.adapters.named_tensors()]
        self._ranks.exchange(changed, candidates)

    def _examine(self, slot: int, run: EpochRun, epoch: int) -> EpochRun:
        """The run of a candidate, with the fault that its state shows after the epoch if its losses show none: the last
        update of an epoch is in no loss."""
        if run.fault is None:
            tensors = [*self.population.named_tensors(slot), *self._setup.adapters.named_tensors()]
            if names := nonfinite_names(tensors):
                return replace(run, fault=state_fault(names, epoch, self._compute))
        return run

    def lanes(self, plan: Plan, *, average: bool) -> list["Lane"]:
        """The lanes that train the candidates of a plan. They are built once for each kind of plan and kept, because
        steps are captured in them."""
        alike = len(set(plan.streams)) == 1
        kind = plan.interval.candidates, average, alike, plan.labels, plan.turns, plan.class_groups, plan.phase
        if kind not in self._lanes:
            self._lanes[kind] = self._make_lanes(plan, average, alike)
        return self._lanes[kind]

    def _make_lanes(self, plan: Plan, average: bool, alike: bool) -> list["Lane"]:
        """Build the lanes of a plan; `alike` says whether all candidates see the same batches."""
        method, loader, slots = self._setup.method, self._loader_of(plan), self._ranks.own(plan.interval.candidates)
        at_once = self._own_part(loader).batch_size * (2 if method.needs.companion_gradient else 1)
        spec = GroupSpec(self.population, method, plan, self._compute, at_once, average)
        if len(slots) > 1 and (self.side_by_side == "stacked" or method.needs.joint_steps):
            join = stacked_group if self.side_by_side == "stacked" else joint_group
            lanes = [[join(slots, spec)]]
        elif slots and self.side_by_side == "streams" and self._compute.device.type == "cuda":
            lanes = [[single_group(slot, spec) for slot in slots]]
        else:
            lanes = [[single_group(slot, spec)] for slot in slots]
        return [self._make_lane(groups, loader, alike) for groups in lanes]

    def _make_lane(self, groups: list[Group], loader: Loader, alike: bool) -> "Lane":
        slots, own = range(groups[0].candidates.start, groups[-1].candidates.stop), self._own_part(loader)
        rows = slots[:1] if alike else slots
        feed = make_feed(own, self._setup.method.needs.companions, self._mixing, len(rows), self._compute.device)
        sizes, adapters = loader.batch_sizes(), self._setup.adapters.weights
        turns = turns_of(sizes, own.batch_sizes(), self._setup.optimizer.accumulate)
        if self._shared or not all(turn.updates for turn in turns):
            groups = [replace(group, gradient_sum=GradientSum.zeros([*group.leaves, *adapters])) for group in groups]
        steps = {turn: RepeatedStep(self._streams, compiles=self._compute.compile) for turn in set(turns)}
        records = Records.empty(len(slots), len(sizes), self._compute.device)
        return Lane(self._setup, groups, slots, feed, rows, turns, steps, records, self._streams, self._shared)

    def _own_part(self, loader: Loader) -> Loader:
        """The loader of what this process is shown of each batch."""
        return self._shared.part(loader) if self._shared else loader

    def _loader_of(self, plan: Plan) -> Loader:
        loader = self.loader if plan.labels is None else self.loader.with_labels(plan.labels)
        loader = loader if plan.turns is None else loader.with_turns(plan.turns)
        return loader if plan.class_groups == 1 else loader.with_class_groups(plan.class_groups)


@dataclass(frozen=True, eq=False)
class Lane:
    """Candidates that take their steps together, on one feed of batches."""

    setup: StepSetup
    groups: list[Group]
    slots: range
    """The candidates of all groups."""
    feed: Feed
    rows: range
    """The candidates whose random streams the feed follows: the first one for all, or each its own."""
    turns: list[Turn]
    """The batches of an epoch."""
    steps: dict[Turn, RepeatedStep]
    """The step that is repeated on batches of the same kind."""
    records: Records
    streams: Streams | None
    shared: SharedBatches | None
    """The processes that share the batches; None where each has whole ones."""

    def run(
        self,
        epoch: int,
        data_streams: Sequence[DataStream],
        learning_rates: Sequence[list[float]],
        on_batch: Callable[[int], None] | None = None,
        stop: Event | None = None,
    ) -> list[EpochRun]:
        """Train one epoch; returns a result for each candidate of the lane.

        Args:
            data_streams: the random streams of every candidate of the population.
            learning_rates: the learning rates of every candidate of the population, one for each step.

        Raises:
            CancelledError: `stop` was set.
        """
        images, set_up, started = 0, 0.0, time.perf_counter()
        self.records.restart([learning_rates[slot] for slot in self.slots])
        self.feed.start(epoch, [data_streams[slot] for slot in self.rows])
        for turn in until(stop, self.turns):
            if turn.size:
                self.feed.advance()
            step = self.steps[turn]
            if not step.replay():
                with step.record():
                    self.take_step(turn)
            set_up += step.set_up_seconds
            images += 0 if step.set_up_seconds else turn.batch
            if on_batch is not None:
                on_batch(turn.batch * len(self.slots))
        self.feed.finish()
        self._sum_records()
        training = self._statistics()  # the host waits for the device here
        seconds = time.perf_counter() - started - set_up
        if images == 0:  # all steps of the epoch were first steps
            images, seconds = sum(turn.batch for turn in self.turns), seconds + set_up
        share = len(self.slots)
        return [
            EpochRun(statistics, images, seconds / share, set_up / share, self._find_fault(row, epoch, data_streams))
            for row, statistics in enumerate(training)
        ]

    def take_step(self, turn: Turn) -> None:
        """Take one step of all groups on the next batch."""
        setup, first = self.setup, self.slots.start
        if not turn.size:
            for group in self.groups:
                update_group(setup, group, (), self.records, turn)
            self.records.step.add_(1)
            return
        inputs = self.feed.read(self.records.step, turn.size)
        with branches(len(self.groups), self.streams) as contexts:
            for group, context in zip(self.groups, contexts, strict=True):
                with context, self.shared.norms(turn.batch) if self.shared else nullcontext():
                    rows = slice(group.candidates.start - first, group.candidates.stop - first)
                    own, records = inputs.select(rows), self.records.select(rows)
                    teachers = setup.teachers.outputs(own.batch.images, own.batch.indices)
                    if setup.method.needs.look_ahead:
                        setup.method.before_step(Trial(group, own, teachers, records, setup))
                    train_step(setup, group, own, teachers, records, turn)
        self.records.step.add_(1)

    def _sum_records(self) -> None:
        """Make the records of a part of each batch those of whole batches."""
        if self.shared is not None:
            parts = torch.tensor([turn.part for turn in self.turns], device=self.records.losses.device)
            self.records.losses.mul_(parts.unsqueeze(1))
            self.shared.add(self.records.losses)
            self.shared.add(self.records.totals)

    def _statistics(self) -> list[TrainingStatistics]:
        """Means over the samples; the last batch may be smaller than the others."""
        sizes, names = [turn.batch for turn in self.turns], self.records.names
        samples = sum(sizes)
        statistics = []
        for losses, totals in zip(self.records.losses.tolist(), self.records.totals.tolist(), strict=True):
            steps = zip(losses, sizes, strict=True)
            weighed = [[value * size for value in values[: 1 + len(names)]] for values, size in steps]
            loss, *terms = (sum(values) / samples for values in zip(*weighed, strict=True))
            correct, true_probability, entropy = (total / samples for total in totals)
            named = dict(zip(names, terms, strict=True))
            statistics.append(TrainingStatistics(loss, correct, true_probability, entropy, named))
        return statistics

    def _find_fault(self, row: int, epoch: int, data_streams: Sequence[DataStream]) -> Fault | None:
        """The fault of a candidate by its losses, with its cause, for which the epoch's images are shown again."""
        setup, compute = self.setup, self.setup.compute
        found = loss_fault(self.records.losses[row].tolist(), self.records.names, epoch, compute)
        if found is None:
            return None
        bad_step, fault = found
        self.feed.start(epoch, [data_streams[slot] for slot in self.rows])
        for step, turn in enumerate(self.turns):
            if not turn.size:
                continue
            self.feed.advance()
            if step == bad_step:
                number = torch.tensor([step], device=compute.device)
                inputs = self.feed.read(number, turn.size).select(slice(row, row + 1))
                outputs = setup.teachers.outputs(inputs.batch.images, inputs.batch.indices)
                fault = input_fault(fault, inputs, setup.teachers.wanted_names, outputs)
        self.feed.finish()
        faults = self.shared.gather([fault]) if self.shared else [fault]
        return next((each for each in faults if each != found[1]), fault)


def _run_at_once(runs: Sequence[Callable[[Event], list[EpochRun]]], *, in_turn: bool) -> list[EpochRun]:
    """Run lanes at the same time, see `run_at_once`."""
    started = time.perf_counter()
    results = [run for of_lane in run_at_once(runs, in_turn=in_turn) for run in of_lane]
    return _share_time(results, time.perf_counter() - started)


def _share_time(runs: Sequence[EpochRun], elapsed: float) -> list[EpochRun]:
    """Give each of the candidates that trained at the same time its share of the seconds that all of them took."""
    share = elapsed / sum(run.seconds + run.set_up_seconds for run in runs)
    return [replace(run, seconds=share * run.seconds, set_up_seconds=share * run.set_up_seconds) for run in runs]
