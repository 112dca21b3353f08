"""Run a method from the first epoch to the last, from a fresh start or from a checkpoint.

The trainer sees the training part of a data set only, split into images to fit and held-out images to judge by.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tfkd_fast
from tfkd_fast import ops
from tfkd_fast.data import Dataset, describe_augmentation
from tfkd_fast.device import Compute
from tfkd_fast.errors import UserError
from tfkd_fast.events import (
    FORMAT,
    CandidateDiverged,
    CandidatesAveraged,
    ConvolutionsChosen,
    EpochEnded,
    HoldoutFigures,
    LoaderChosen,
    ProcessesJoined,
    RunDiverged,
    RunFinished,
    RunResumed,
    RunStarted,
    StepsCompiled,
    StoppedEarly,
    StudentExamined,
)
from tfkd_fast.finiteness import named_tensors, nonfinite_names
from tfkd_fast.judging.metrics import Judgement
from tfkd_fast.methods import find_method
from tfkd_fast.methods.base import (
    AverageResult,
    EpochResult,
    HoldoutMetrics,
    IntervalResult,
    Material,
    Method,
    Outcome,
    Plan,
    SteeredMethod,
)
from tfkd_fast.models import gives_finite_logits
from tfkd_fast.ops import conv_algorithms
from tfkd_fast.randomness import seeded_layers
from tfkd_fast.runs.checkpoint_writer import CheckpointWriter
from tfkd_fast.runs.convolutions import ConvolutionRecord
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import Listener, RunLog, whole_bytes
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.runs.stop import Stop
from tfkd_fast.runs.student import save_student
from tfkd_fast.teachers.teacher import judge_teacher, trained_on_holdout, unseen_images
from tfkd_fast.training.assemble import Parts, assemble
from tfkd_fast.training.cooldown import train_cooldown
from tfkd_fast.training.divergence import NO_FIGURES, NO_STATISTICS, Fault, figures_fault, output_fault
from tfkd_fast.training.epoch import EpochRun
from tfkd_fast.training.ranks import ALONE, Ranks
from tfkd_fast.training.shared_batches import SharedBatches
from tfkd_fast.training.state import RunState

CUDA_CHECKPOINT_SECONDS = 20.0
"""Seconds from one checkpoint to the next at least on CUDA, where the recipe names none."""

LIKE_RANKS = "start all ranks by the same command, with the same files, versions and processors"
"""The remedy for ranks that differ."""


class Trainer:
    """A run in progress: `run()` trains what is left of it, then `finish()` ends its log, and `close()` closes it.

    `contextlib.closing(trainer)` closes it also where the run ends by an exception.
    """

    parts: Parts[Method]
    """The parts of the run; `run()` deletes them at its end."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        compute: Compute,
        folder: RunFolder,
        listeners: Sequence[Listener] = (),
        convolutions: ConvolutionRecord | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Assemble the run; nothing is written yet. `convolutions` is the record of a run that goes on. Of several
        processes, `ranks`, the first one alone writes into the folder and tells the listeners.

        Raises:
            UserError: for a recipe that cannot be trained.
        """
        entry = find_method(recipe.method)
        if entry.needs(recipe.options).holdout and not recipe.data.holdout:
            raise UserError(f"method {recipe.method} is steered by held-out images: set data.holdout above 0")
        self.dataset, self.folder = dataset, folder
        self._listeners = listeners if ranks.first else ()
        build = partial(entry.build, recipe.options)
        self.parts = assemble(recipe, dataset, compute, build, self._on_batch, convolutions=convolutions, ranks=ranks)
        self.compute, self.ranks = self.parts.compute, self.parts.ranks
        """What the run computes in, and the processes that train it."""
        self.convolutions = self.parts.convolutions.record
        """The algorithms of the convolutions."""
        self.recipe = self.parts.recipe
        """The recipe, with the loader that `auto` chose."""
        self.population = self.parts.population
        """The candidates; after `run()` the first one is the trained student."""
        self.state = RunState()
        """The progress of the run."""
        self._plan: Plan | None = None  # of the present interval; None between two intervals
        self._files = ExitStack()
        self._log: RunLog  # opened by run()
        self._checkpoints: CheckpointWriter
        self._last_saved = 0.0  # when the last checkpoint was begun, or the run, as time.perf_counter() has it

    def run(self, stop: Stop | None = None) -> dict[str, Any]:
        """Train to the last epoch; returns what training adds to the summary. The test set is not read.

        Args:
            stop: asks for an end before that, at the next epoch that ends, which is saved.

        Raises:
            Stopped: `stop` asked for it.
        """
        stop = stop or Stop()
        with conv_algorithms.using(self.convolutions.choices):
            self._start()
            while not self._is_over():
                if self._plan is None:
                    self._plan = self._next_plan()
                draws_on_cuda = self.parts.draws and self.compute.device.type == "cuda"
                with seeded_layers(self.recipe.seed, self.state.epoch, on_cuda=draws_on_cuda):
                    self._run_epoch(self._plan, stop)
                ends = self._stop_requested(stop) or self._is_over()
                if ends or self.ranks.decide(self._checkpoint_is_due):
                    with self._log.measure_seconds("saving"):
                        self._save()
                        if ends:
                            self._checkpoints.wait()
                    stop.unsaved = False  # or on its way: an end of the run waits for it
                    if self._stop_requested(stop):  # also of other processes, which wait here for the first one
                        stop.check()  # here alone: a signal that comes a moment later waits for the next epoch's end
        epoch, patience = self.state.epoch, self.recipe.patience
        if epoch < self.recipe.epochs and patience is not None:
            self._log.write(StoppedEarly(epoch=epoch, best_epoch=self.state.best_epoch, patience=patience))
        self._save_student(self.folder.student, self.population.models[0])
        if self.population.ema:
            self._save_student(self.folder.ema, self.population.ema_network(0))
        if self.ranks.first:
            for name, content in self.parts.method.files().items():
                self.folder.write_bytes(name, content)
        summary = self._summary() | self.parts.method.summary()
        del self.parts  # so that no controller is alive during the test,
        gc.collect()  # also where a reference cycle holds it
        return summary

    def _stop_requested(self, stop: Stop) -> bool:
        """Whether a signal came to any of the processes; each of them ends then as if it had come to it."""
        stop.requested = next((number for number in self.ranks.gather([stop.requested]) if number), None)
        return stop.requested is not None

    def _is_over(self) -> bool:
        """Whether the run has all of its epochs, or ends early, which it does between two intervals only."""
        state, patience = self.state, self.recipe.patience
        waited = state.epoch - state.best_epoch if state.best_epoch and state.interval is None else 0
        return state.epoch == self.recipe.epochs or (patience is not None and waited >= patience)

    def _checkpoint_is_due(self) -> bool:
        """Whether the epoch that just ended is to have a checkpoint."""
        least = self.recipe.checkpoint_seconds
        if least is None:
            least = CUDA_CHECKPOINT_SECONDS if self.compute.device.type == "cuda" else 0.0
        by_epochs = self.state.epoch % self.recipe.checkpoint_every == 0
        return by_epochs and time.perf_counter() - self._last_saved >= least

    def finish(self, summary: dict[str, Any], examination: StudentExamined | None) -> None:
        """Write the last lines of the log: the test of the student by class, if there was one, and the summary."""
        self._log.write(*([examination] if examination else []), RunFinished(**summary))
        self._log.sync()

    def record_divergence(self, reason: str) -> None:
        """Write into the log that the student of the last epoch is of no use, and why."""
        self._log.write(RunDiverged(epoch=self.state.epoch, reason=reason))

    def close(self) -> None:
        """Wait for the last checkpoint and close the log, if `run()` opened it.

        Raises:
            UserError: the checkpoint could not be written.
        """
        self._files.close()

    # Training.

    def _next_plan(self) -> Plan:
        """Ask the method for the plan of the next interval; a schedule of its own starts with an optimiser that
        remembers nothing."""
        with self._log.measure_seconds("steering"):
            plan = self.parts.method.begin_interval(self.state.epoch)
            if plan.schedule is not None and plan.schedule[0] == self.state.epoch:
                self.population.forget_optimizer_state()
                self.parts.adapters.forget_optimizer_state()
            self.state.interval = plan.interval
            self.ranks.agree(lambda: {"the plan": repr((plan.interval, plan.factors, plan.events))}, LIKE_RANKS)
            self._log.write(*plan.events)
        return plan

    def _run_epoch(self, plan: Plan, stop: Stop) -> None:
        """Train every candidate for one epoch, judge it, and at the interval's end let one live on."""
        state, method, epochs = self.state, self.parts.method, self.parts.epochs
        interval, needs = plan.interval, method.needs
        last = state.epoch + 1 == interval.end
        rates = self.recipe.learning_rates(state.epoch, epochs.steps(plan), plan.schedule)
        averaged = "epoch" in needs.averages and (last or needs.judges_epochs)
        runs = epochs.run(plan, state.epoch, rates, average=averaged)
        self._add_costs(runs)
        self._leave_out(plan, state.epoch + 1, [run.fault for run in runs])
        if "interval" in needs.averages and interval.candidates > 1 and interval.epochs > 1:
            if state.epoch == interval.first_epoch:
                self.population.interval_average.restart()
            self.population.interval_average.add(interval.candidates)
        with self._log.measure_seconds("evaluation"):
            networks = [plan.network(self.population.models[slot]) for slot in self.ranks.own(interval.candidates)]
            own = self.parts.judge.judgements(networks, plan.known_labels)
            faults = [self._output_fault(*pair) for pair in zip(networks, own, strict=True)]
            judged, faults = self.ranks.of_candidates(own), self.ranks.of_candidates(faults)
        self._leave_out(plan, state.epoch + 1, faults)
        stop.unsaved = True
        state.epoch += 1
        averages: list[HoldoutMetrics | None] = [None for _ in runs]
        if averaged and not last:
            averages = self._epoch_averages(plan)
        for slot in state.diverged:
            runs[slot] = replace(runs[slot], training=NO_STATISTICS)
            judged[slot] = Judgement(NO_FIGURES, (math.nan,) * len(self.dataset.classes))
            averages[slot] = NO_FIGURES
        holdout = [judgement and judgement.metrics for judgement in judged]
        with self._log.measure_seconds("steering"):
            self._log.write(*(self._epoch_event(plan, slot, run, holdout[slot]) for slot, run in enumerate(runs)))
            results = [
                EpochResult(run.training, figures, judgement and judgement.top1_by_class, average)
                for run, figures, judgement, average in zip(runs, holdout, judged, averages, strict=True)
            ]
            self._log.write(*method.end_epoch(results))
        if plan.complete:
            self._keep_best(dict(enumerate(holdout)))
        if last:
            self._end_interval(plan, runs, holdout)

    def _epoch_averages(self, plan: Plan) -> list[HoldoutMetrics | None]:
        """The held-out figures of each candidate's weights averaged over the latest epoch, if they are averaged."""
        average, epoch, ranks = self.population.epoch_average, self.state.epoch, self.ranks
        with self._log.measure_seconds("evaluation"):
            own = ranks.own(plan.interval.candidates)
            figures = ranks.of_candidates(self.parts.judge.average_metrics(average, own, epoch))
        when = f"of the weights averaged over epoch {epoch}"
        self._leave_out(plan, epoch, [figures_fault(each, when, self.compute) for each in figures])
        return figures

    def _end_interval(self, plan: Plan, runs: list[EpochRun], holdout: list[HoldoutMetrics | None]) -> None:
        method, outcome = self.parts.method, Outcome(tuple(range(len(runs))))
        if isinstance(method, SteeredMethod):
            outcome = self._judge_interval(method, plan, runs, holdout)
        if outcome.averaged:
            self._average(outcome.averaged, outcome.survivors[0])
        self.population.continue_from(outcome.survivors)
        self.state.alive, self.state.interval, self._plan = len(outcome.survivors), None, None
        self.state.diverged = ()

    def _judge_interval(
        self, method: SteeredMethod, plan: Plan, runs: list[EpochRun], holdout: list[HoldoutMetrics | None]
    ) -> Outcome:
        """Give a steered method the results of its candidates at the end of an interval; returns its outcome."""
        population, judge, epoch, ranks = self.population, self.parts.judge, self.state.epoch, self.ranks
        cooldown_metrics, own = self._cooldown_metrics(method, plan), ranks.own(len(runs))
        epoch_averages = self._epoch_averages(plan)
        with self._log.measure_seconds("evaluation"):
            interval_averages = ranks.of_candidates(judge.average_metrics(population.interval_average, own, epoch))
            if plan.interval.epochs == 1 and "interval" in method.needs.averages:
                interval_averages = holdout  # of the weights as they are: the interval has one end of an epoch
        judged = list(zip(epoch_averages, interval_averages, cooldown_metrics, strict=True))
        for number, how in ((1, "averaged over the interval to"), (2, "after the cooldown from")):
            when = f"of the weights {how} epoch {epoch}"
            self._leave_out(plan, epoch, [figures_fault(row[number], when, self.compute) for row in judged])
        influences = [self._influence(slot) for slot in range(len(runs))]
        results = [
            IntervalResult(run.training, holdout[slot], *judged[slot], influences[slot])
            for slot, run in enumerate(runs)
        ]
        for slot in self.state.diverged:
            results[slot] = IntervalResult(NO_STATISTICS, NO_FIGURES, NO_FIGURES, NO_FIGURES, NO_FIGURES)
        with self._log.measure_seconds("steering"):
            outcome = method.end_interval(results, self._judge_average)
            self._log.write(*outcome.events)
        return outcome

    def _influence(self, slot: int) -> Callable[[], Tensor] | None:
        """What computes the influence of the targets of one candidate, where the method reads it."""
        if not self.parts.method.needs.influence:
            return None
        compute = self.parts.judge.influence(self.population.models[slot], self.state.epoch)
        return compute and partial(self.ranks.decide, compute)

    def _judge_average(self, slots: Sequence[int]) -> AverageResult:
        """Held-out metrics of the average of some candidates."""
        with self._log.measure_seconds("evaluation"):
            return self.ranks.decide(partial(self._average_result, slots))

    def _average_result(self, slots: Sequence[int]) -> AverageResult:
        judge, epoch, averages = self.parts.judge, self.state.epoch, self.parts.method.needs.averages
        average = judge.weights_metrics(self.population.mean_weights(slots), epoch)
        if "interval" not in averages:
            return AverageResult(average, None)
        return AverageResult(average, judge.weights_metrics(self.population.mean_interval_weights(slots), epoch))

    def _average(self, slots: tuple[int, ...], survivor: int) -> None:
        """Put the average of some candidates in the place of one of them. The student at the end of a run gets batch
        norm by all training images."""
        population, judge, epoch = self.population, self.parts.judge, self.state.epoch
        network = population.models[survivor]
        population.average(slots, into=survivor)
        with self._log.measure_seconds("evaluation"):
            judge.estimate_batch_norm(network, epoch, all_images=epoch == self.recipe.epochs)
            self.ranks.exchange(list(population.buffers.values()), len(population))
            (metrics,) = self.ranks.decide(lambda: judge.metrics([network]))
        if fault := figures_fault(metrics, f"of the average of candidates after epoch {epoch}", self.compute):
            raise self._end_diverged(epoch, survivor, len(self.population), fault)
        if metrics is not None:
            self._log.write(
                CandidatesAveraged(epoch=epoch, candidates=slots, holdout=HoldoutFigures(**in_percent(metrics)))
            )
            self._keep_best({survivor: metrics})

    def _cooldown_metrics(self, method: SteeredMethod, plan: Plan) -> list[HoldoutMetrics | None]:
        """Held-out metrics of each candidate after a cooldown, which is then undone; None for each without one."""
        count = plan.interval.candidates
        if not method.needs.cooldown_epochs:
            return [None] * count
        epoch = self.state.epoch
        with train_cooldown(self.parts.epochs, method, plan, epoch, self.recipe.learning_rate(epoch)) as runs:
            self._add_costs(runs)
            with self._log.measure_seconds("evaluation"):
                models = [self.population.models[slot] for slot in self.ranks.own(count)]
                metrics = self.ranks.of_candidates(self.parts.judge.metrics(models))
        faults = [next((run.fault for run in runs[slot::count] if run.fault), None) for slot in range(count)]
        cooling = [fault and replace(fault, what=f"in the cooldown, {fault.what}") for fault in faults]
        self._leave_out(plan, epoch, cooling)
        return metrics

    def _output_fault(self, network: nn.Module, judgement: Judgement | None) -> Fault | None:
        """The fault of a network that gives no finite outputs, by held-out images or, without any, by noise."""
        when = f"after epoch {self.state.epoch + 1}"
        if judgement is None and not gives_finite_logits(network, self.dataset.image_shape):
            return output_fault(when, self.compute)
        return figures_fault(judgement and judgement.metrics, when, self.compute)

    def _leave_out(self, plan: Plan, epoch: int, faults: Sequence[Fault | None]) -> None:
        """Leave candidates that diverged by an epoch (counted from 1) out of the selection at their interval's end.

        Their tensors become zero, so that a checkpoint holds finite numbers; the figures that they are ranked by are
        NaN.

        Raises:
            UserError: no candidate is left, or the method selects none.
        """
        state, count = self.state, plan.interval.candidates
        found = {slot: fault for slot, fault in enumerate(faults) if fault and slot not in state.diverged}
        if not found:
            return
        state.diverged = (*state.diverged, *found)
        if not plan.selects or len(state.diverged) == count:
            slot, fault = next(iter(found.items()))
            raise self._end_diverged(epoch, slot, count, fault)
        for slot, fault in found.items():
            self.population.clear(slot)
            for tensor in self.parts.method.candidate_tensors().values():
                tensor[slot].zero_()
            self._log.write(CandidateDiverged(epoch=epoch, candidate=slot, reason=fault.what))

    def _end_diverged(self, epoch: int, slot: int, candidates: int, fault: Fault) -> UserError:
        """Write the fault of candidate `slot` of so many into the log; returns the sentence about it."""
        self._log.write(RunDiverged(epoch=epoch, reason=fault.what))
        return UserError(fault.tell(slot, candidates, self._last_good()))

    def _last_good(self) -> str:
        self._checkpoints.wait()
        saved = self.folder.checkpoint_files()
        return f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"

    def _add_costs(self, runs: list[EpochRun]) -> None:
        """Add the images and seconds of epochs of candidates to the state and the log."""
        self.state.student_epochs += len(runs)
        self.state.images_trained += sum(run.images for run in runs)
        self._log.seconds["training"] += sum(run.seconds for run in runs)
        set_up = sum(run.set_up_seconds for run in runs)
        if set_up:
            self._log.seconds["compile"] += set_up
            self._log.write(StepsCompiled(epoch=self.state.epoch + 1, seconds=set_up))

    def _on_batch(self, images: int) -> None:
        self._log.batch(images)

    def _keep_best(self, holdout: Mapping[int, HoldoutMetrics | None]) -> None:
        """Save the candidate with the highest held-out top-1 of the run so far, also one that will be left behind."""
        best = None
        for slot, metrics in holdout.items():
            if metrics is not None and metrics.top1 > self.state.best_top1:
                self.state.best_epoch, self.state.best_top1, best = self.state.epoch, metrics.top1, slot
        if best is not None:
            with self._log.measure_seconds("saving"):
                self._save_student(self.folder.best, self.population.models[best])

    def _save_student(self, path: Path, model: nn.Module) -> None:
        data = self.recipe.data
        if self.ranks.first:
            save_student(path, model, self.recipe.model, self.dataset, data.holdout, data.fold)

    # Start and checkpoints.

    def _start(self) -> None:
        """Go on from the newest checkpoint, or begin a new log and let the method prepare itself."""
        self.ranks.agree(lambda: self._facts() | {"the recipe": self.recipe.to_toml()}, LIKE_RANKS)
        saved = self.folder.newest_state()
        if saved is not None:
            with self.folder.reading_newest():
                self._restore(saved)
            self._log.write(*self._joined())
            return
        self._open(RunLog(self._log_file, self._listeners))
        self._log.write(self._started(), *self._joined())
        choice = self.parts.images.choice
        if choice is not None:
            self._log.write(LoaderChosen(**asdict(choice)))
        if self.convolutions.passes:
            seconds = self.parts.convolutions.seconds
            self._log.write(ConvolutionsChosen(passes=self.convolutions.passes, seconds=seconds))
        with self._log.measure_seconds("steering"):
            self._log.write(*self.parts.method.prepare(self._material()))

    def _open(self, log: RunLog) -> None:
        """Have a log, and a writer of checkpoints, which is closed before it."""
        self._log = self._files.enter_context(closing(log))
        self._checkpoints = self._files.enter_context(closing(CheckpointWriter(self.folder, log.sync)))
        self._last_saved = time.perf_counter()

    def _restore(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint, the counterpart of `_save`."""
        parts = self.parts
        if saved["recipe"] != self.folder.read_recipe_text():
            raise UserError(f"the checkpoints in {self.folder.path} were written with another recipe.toml: restore it")
        if saved["teachers"] != parts.teachers.checksums:
            raise UserError(
                f"the teachers of the run in {self.folder.path} are not those that it began with: restore them"
            )
        if names := nonfinite_names(named_tensors(saved)):  # of an earlier version, which wrote such checkpoints
            newest = self.folder.checkpoint_files()[-1]
            raise UserError(f"{newest} is not finite ({names[0]}): delete it, and --resume takes the one before it")
        self.state = state = RunState.from_state_dict(saved["state"])
        if not 0 < state.epoch <= self.recipe.epochs:
            raise ValueError(f"it is of epoch {state.epoch}")
        whole = whole_bytes(self.folder.metrics, state.log_bytes)
        log = RunLog(
            self._log_file,
            self._listeners,
            keep=whole,
            earlier_seconds=state.elapsed,
            seconds=state.seconds,
        )
        self._open(log)
        parts.population.load_state_dict(saved["population"])
        parts.adapters.load_state_dict(saved["adapters"])
        parts.method.load_state_dict(saved["method"])
        self._plan = parts.method.resume_interval(state.interval) if state.interval else None
        if not whole:
            self._log.write(self._started())
        self._log.write(
            RunResumed(
                epoch=state.epoch,
                student_epochs=state.student_epochs,
                log_incomplete=whole < state.log_bytes,
                **self._facts(),
            )
        )

    def _save(self) -> None:
        if not self.ranks.first:
            return
        state, parts = self.state, self.parts
        self._last_saved = time.perf_counter()
        state.seconds, state.elapsed, state.log_bytes = self._log.seconds, self._log.elapsed(), self._log.size()
        active = state.interval.candidates if state.interval else state.alive
        content = {
            "recipe": self.folder.read_recipe_text(),
            "loader": self.recipe.data.loader,
            "teachers": parts.teachers.checksums,
            "state": state.state_dict(),
            "population": parts.population.state_dict(active),
            "adapters": parts.adapters.state_dict(),
            "method": parts.method.state_dict(),
        }
        if names := nonfinite_names(named_tensors(content)):  # the method's own: the others were looked at before
            fault = Fault(f"not finite after epoch {state.epoch}: {names[0]}", "lower the learning rate of that part")
            raise self._end_diverged(state.epoch, 0, 1, fault)
        self._checkpoints.save(state.epoch, content)

    @property
    def _log_file(self) -> Path | None:
        return self.folder.metrics if self.ranks.first else None

    def _material(self) -> Material:
        """The images and teachers for `Method.prepare`."""
        loader, teachers = self.parts.loader, self.parts.teachers
        unseen = unseen_images(teachers.teachers, self.dataset, self.recipe.data)
        return Material(
            loader.epoch,
            None if unseen is None else loader.with_indices(unseen.any(0).nonzero().squeeze(1)).epoch,
            lambda images: teachers.predict(images.unsqueeze(0)),
            None if unseen is None else unseen.to(self.compute.device),
        )

    # The log and the summary.

    def _facts(self) -> dict[str, Any]:
        """What identifies the run: the fields of `RunFacts`."""
        recipe, parts, needs = self.recipe, self.parts, self.parts.method.needs
        teachers = parts.teachers.teachers
        return {
            "method": recipe.method,
            "dataset": self.dataset.name,
            "model": recipe.model.name,
            "seed": recipe.seed,
            "epochs": recipe.epochs,
            "device": self.compute.device.type,
            "device_name": self.compute.device_name,
            "precision": self.compute.precision,
            "loader": recipe.data.loader,
            "ops": ops.backend_of("soft_target_loss", self.compute.device),
            "parameters": sum(p.numel() for p in self.population.models[0].parameters()),
            "train_images": parts.images.num_fit,
            "holdout_images": parts.images.num_holdout,
            "steered_by_holdout": needs.holdout,
            "candidates": needs.candidates,
            "teachers": [teacher.facts.name for teacher in teachers],
            "teachers_saw_holdout": trained_on_holdout(teachers, self.dataset, recipe.data),
            "population": parts.epochs.side_by_side,
            "compile": self.compute.compile,
            "planned_student_epochs": find_method(recipe.method).student_epochs(recipe.options, recipe.epochs),
            "version": tfkd_fast.__version__,
            "torch": str(torch.__version__),
        }

    def _epoch_event(self, plan: Plan, slot: int, run: EpochRun, holdout: HoldoutMetrics | None) -> EpochEnded:
        """The log event of an epoch of one candidate, with accuracies in percent."""
        training, epoch = run.training, self.state.epoch
        return EpochEnded(
            epoch=epoch,
            candidate=slot,
            learning_rate=plan.factors[slot] * self.recipe.learning_rate(epoch - 1, plan.schedule),
            train_loss=training.loss,
            terms=training.terms,
            train_top1=100 * training.top1,
            true_probability=training.true_probability,
            entropy=training.entropy,
            images_per_second=run.images / run.seconds,
            seconds=run.seconds,
            student_epochs=self.state.student_epochs,
            holdout=HoldoutFigures(**in_percent(holdout)) if holdout else None,
            holdout_classes=len(plan.known_labels or self.dataset.classes) if holdout else None,
        )

    def _started(self) -> RunStarted:
        """The first line of the log."""
        dataset, teachers = self.dataset, self.parts.teachers.teachers
        images = self.parts.images.holdout or self.parts.images.fit
        figures = [judge_teacher(teacher, images, self.compute) for teacher in teachers]
        return RunStarted(
            **self._facts(),
            classes=tuple(dataset.classes),
            reading=dataset.reading,
            augmentation=describe_augmentation(self.recipe.data),
            parts=dataset.parts,
            teachers_top1=tuple(100 * figure.top1 for figure in figures),
            teachers_at_chance=tuple(
                teacher.facts.name for teacher, figure in zip(teachers, figures, strict=True) if figure.is_chance
            ),
            format=FORMAT,
        )

    def _joined(self) -> list[ProcessesJoined]:
        """What the log says of several processes."""
        if self.ranks.size == 1:
            return []
        share = "batch" if isinstance(self.ranks, SharedBatches) else "candidates"
        return [ProcessesJoined(count=self.ranks.size, share=share)]

    def _summary(self) -> dict[str, Any]:
        state, log = self.state, self._log
        return self._facts() | {
            "epoch_rule": "last",
            "stopped_after": state.epoch if state.epoch < self.recipe.epochs else None,
            "best_epoch": state.best_epoch or None,
            "best_holdout_top1": 100 * state.best_top1 if state.best_epoch else None,
            "student_epochs": state.student_epochs,
            "images_per_second": state.images_trained / log.seconds["training"],
            **{f"{part}_seconds": seconds for part, seconds in log.seconds.items()},
            "seconds": log.elapsed(),
        }


def in_percent(metrics: HoldoutMetrics) -> dict[str, float]:
    """The figures by name, top-1 and top-5 in percent as users of timm expect, the others as they are."""
    values = asdict(metrics)
    return values | {name: 100 * values[name] for name in ("top1", "top5")}
