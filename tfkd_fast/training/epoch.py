"""One epoch of all candidates: which of them step together, and what an epoch leaves behind."""

import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from threading import Event

import torch

from tfkd_fast.data import Loader, Mixing
from tfkd_fast.device import Compute
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Method, TrainingStatistics
from tfkd_fast.runs.schedule import OptimizerSettings
from tfkd_fast.teachers.teacher import Teachers
from tfkd_fast.training.adapters import Adapters
from tfkd_fast.training.capture import RepeatedStep, Streams, run_in_parallel
from tfkd_fast.training.feed import Feed, Shown, make_feed
from tfkd_fast.training.groups import Group, Making, SideBySide, alone, stacked, together
from tfkd_fast.training.holdout import HoldoutBatches
from tfkd_fast.training.lookahead_step import Trial
from tfkd_fast.training.population import Population
from tfkd_fast.training.step import Records, Training, train_step


class Diverged(UserError):
    """The loss of a candidate is no longer finite."""

    def __init__(self, message: str, candidate: int) -> None:
        super().__init__(message)
        self.candidate = candidate


@dataclass(frozen=True)
class EpochRun:
    """What an epoch of one candidate left behind."""

    training: TrainingStatistics
    images: int
    """On which `seconds` were spent."""
    seconds: float
    """Of training; for candidates that trained at the same time, an equal share."""
    set_up_seconds: float
    """Of the first steps of a kind, which compile or capture; likewise a share, and not part of `seconds`."""


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
        on_batch: Callable[[int], None],
        *,
        adapters: Adapters | None = None,
        teachers: Teachers | None = None,
        holdout: Loader | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        """`on_batch` is told of how many images a step was taken on, summed over the candidates that took it.

        `adapters`, `teachers` and the held-out images that the method may look at are those of the run; a method that
        has none does without.
        """
        self._population, self._method, self._loader = population, method, loader
        self._compute, self.side_by_side, self._on_batch, self._mixing = compute, side_by_side, on_batch, mixing
        self._adapters = adapters or Adapters(method.adapters)
        self._teachers = teachers or Teachers((), compute, loader.batch_size, features=False)
        self._training = Training(method, settings, self._adapters, self._teachers)
        self._holdout = HoldoutBatches(holdout) if holdout is not None and method.looks_ahead else None
        self._streams = Streams() if compute.device.type == "cuda" and not method.looks_ahead else None
        self._lanes: dict[Hashable, list[Lane]] = {}

    def steps(self, labels: tuple[int, ...] | None = None) -> int:
        """Of an epoch on the images of these labels."""
        return len(self._loader_of(labels))

    def run(
        self,
        candidates: int,
        epoch: int,
        learning_rates: list[list[float]],
        *,
        average: bool,
        labels: tuple[int, ...] | None = None,
    ) -> list[EpochRun]:
        """Train the first `candidates` for the 0-based `epoch`, each with a learning rate for every step.

        With `average`, `population.epoch_average` becomes the mean of the weights after each step. With `labels`, only
        their images are shown.

        Raises:
            Diverged: a loss was not finite.
        """
        if average:
            self._population.epoch_average.restart()
        for model in [*self._population.models[:candidates], *self._population.slow_models[:candidates]]:
            model.train()
        self._adapters.train()
        self._teachers.start(epoch, self._method.wanted_teachers)
        if self._holdout is not None:
            self._holdout.start(epoch)
        data_streams = [self._method.data_stream(slot) for slot in range(candidates)]
        kind = candidates, average, len(set(data_streams)) == 1, labels, self._method.phase
        is_new = kind not in self._lanes
        if is_new:
            self._lanes[kind] = self._make_lanes(*kind[:4])
        lanes = self._lanes[kind]
        runs = [partial(lane.run, epoch, data_streams, learning_rates) for lane in lanes]
        at_once = self.side_by_side == "streams" and len(lanes) > 1
        compiles = is_new and self._compute.compile
        results = _on_threads(runs, in_turn=compiles) if at_once else [run() for run in runs]
        if average:
            self._population.epoch_average.count = len(learning_rates[0])
        return [result for of_lane in results for result in of_lane]

    def _make_lanes(self, candidates: int, average: bool, shared: bool, labels: tuple[int, ...] | None) -> list["Lane"]:
        """`shared`: whether all see the same batches."""
        loader, slots = self._loader_of(labels), range(candidates)
        at_once = loader.batch_size * (2 if self._method.companion_gradient else 1)
        making = Making(self._population, self._method, self._compute, at_once, average)
        lane = partial(self._lane, loader, shared)
        if candidates > 1 and (self.side_by_side == "stacked" or self._method.needs_joint_steps):
            join = stacked if self.side_by_side == "stacked" else together
            return [lane([join(slots, making)], slots)]
        groups = [alone(slot, making) for slot in slots]
        if self.side_by_side == "streams" and self._compute.device.type == "cuda":
            return [lane(groups, slots)]
        return [lane([group], range(slot, slot + 1)) for slot, group in enumerate(groups)]

    def _lane(self, loader: Loader, shared: bool, groups: list[Group], slots: range) -> "Lane":
        rows = slots[:1] if shared else slots
        feed = make_feed(loader, self._method.companions, self._mixing, len(rows), self._compute.device)
        step, sizes = self._take_step, loader.batch_sizes()
        return Lane(groups, slots, feed, rows, step, sizes, self._compute, self._streams, self._on_batch)

    def _take_step(self, group: Group, shown: Shown, records: Records) -> None:
        taught = self._teachers.outputs(shown.batch.images, shown.batch.indices)
        if self._method.looks_ahead:
            self._method.before_step(Trial(group, shown, taught, records, self._training, self._holdout))
        train_step(group, shown, taught, records, self._training)

    def _loader_of(self, labels: tuple[int, ...] | None) -> Loader:
        return self._loader if labels is None else self._loader.with_labels(labels)


class Lane:
    """Candidates that take their steps together, on one feed of batches."""

    def __init__(
        self,
        groups: list[Group],
        slots: range,
        feed: Feed,
        rows: range,
        step: Callable[[Group, Shown, Records], None],
        sizes: list[int],
        compute: Compute,
        streams: Streams | None,
        on_batch: Callable[[int], None],
    ) -> None:
        """`rows`: the slots whose random streams the feed follows, the first one for all or each its own."""
        self._groups, self._slots, self._feed, self._rows, self._train_step = groups, slots, feed, rows, step
        self._sizes, self._streams, self._on_batch = sizes, streams, on_batch
        self._records = Records.empty(len(slots), len(sizes), compute.device)
        self._steps = {
            size: RepeatedStep(partial(self._step, size), streams, compiles=compute.compile) for size in set(sizes)
        }

    def run(
        self, epoch: int, data_streams: list[int], learning_rates: list[list[float]], stop: Event | None = None
    ) -> list[EpochRun]:
        """One epoch; a result for each candidate of the lane. Raises CancelledError once `stop` is set.

        `data_streams` and `learning_rates` are those of every candidate of the population.
        """
        images, set_up, started = 0, 0.0, time.perf_counter()
        self._records.restart([learning_rates[slot] for slot in self._slots])
        self._feed.start(epoch, [data_streams[slot] for slot in self._rows])
        for size in self._sizes:
            if stop is not None and stop.is_set():
                raise CancelledError
            self._feed.advance()
            seconds = self._steps[size]()
            set_up += seconds
            images += 0 if seconds else size
            self._on_batch(size * len(self._slots))
        self._feed.finish()
        losses, totals = self._records.losses.tolist(), self._records.totals.tolist()  # here the host waits
        seconds = time.perf_counter() - started - set_up
        if images == 0:  # an epoch of nothing but first steps
            images, seconds = sum(self._sizes), seconds + set_up
        share = len(self._slots)
        return [
            EpochRun(self._statistics(losses[row], totals[row], epoch, slot), images, seconds / share, set_up / share)
            for row, slot in enumerate(self._slots)
        ]

    def _step(self, size: int) -> None:
        shown = self._feed.shown(self._records.step, size)
        run_in_parallel([partial(self._step_of, group, shown) for group in self._groups], self._streams)
        self._records.step.add_(1)

    def _step_of(self, group: Group, shown: Shown) -> None:
        first = self._slots.start
        rows = slice(group.candidates.start - first, group.candidates.stop - first)
        self._train_step(group, shown.of(rows), self._records.of(rows))

    def _statistics(self, losses: list[float], totals: list[float], epoch: int, slot: int) -> TrainingStatistics:
        """Means over the samples; the last batch may be smaller than the others."""
        for step, loss in enumerate(losses, start=1):
            if not math.isfinite(loss):
                raise Diverged(f"the loss became {loss} in epoch {epoch + 1}, step {step}, candidate {slot}", slot)
        samples = sum(self._sizes)
        loss = sum(loss * size for loss, size in zip(losses, self._sizes, strict=True)) / samples
        correct, true_probability, entropy = (total / samples for total in totals)
        return TrainingStatistics(loss, correct, true_probability, entropy)


def _on_threads(runs: Sequence[Callable[..., list[EpochRun]]], *, in_turn: bool) -> list[list[EpochRun]]:
    """Run at the same time, on as many threads as torch uses, which share its cores. The first error stops all.

    `in_turn`: one after the other, each with its share of the cores all the same, so that the numbers are the same. In
    some versions of torch (2.11) no thread may call what is compiled while another compiles.
    """
    threads, started = torch.get_num_threads(), time.perf_counter()
    workers = min(threads, len(runs))
    stop = Event()
    try:
        # new threads each time: in MKL a number of threads is set for the whole process
        at_once = 1 if in_turn else workers
        with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            futures = [pool.submit(run, stop=stop) for run in runs]
            try:
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()  # raises what a thread raised
            except BaseException:  # also of the person who waits
                stop.set()
                raise
            results = [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)
    together = time.perf_counter() - started
    share = together / sum(run.seconds + run.set_up_seconds for of_lane in results for run in of_lane)
    return [
        [replace(run, seconds=share * run.seconds, set_up_seconds=share * run.set_up_seconds) for run in of_lane]
        for of_lane in results
    ]
