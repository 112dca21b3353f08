"""Run a method from the first epoch to the last, from a fresh start or from a checkpoint.

The trainer sees the training part of a data set only, split into images to fit and held-out images to judge by.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tfkd_fast
from tfkd_fast import ops
from tfkd_fast.data import Dataset, make_mixing
from tfkd_fast.device import Compute
from tfkd_fast.errors import UserError
from tfkd_fast.events import (
    FORMAT,
    EpochEnded,
    HoldoutFigures,
    LoaderChosen,
    RunFinished,
    RunResumed,
    RunStarted,
    StepsCompiled,
)
from tfkd_fast.judging.judge import Judge
from tfkd_fast.methods import find_method
from tfkd_fast.methods.base import (
    EpochResult,
    HoldoutMetrics,
    Interval,
    IntervalResult,
    Material,
    Outcome,
    Plan,
    SteeredMethod,
)
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import Listener, RunLog
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.runs.student import save_student
from tfkd_fast.teachers.cache import gather_teachers
from tfkd_fast.teachers.teacher import load_teachers, trained_on_holdout, unseen_indices
from tfkd_fast.training.adapters import Adapters
from tfkd_fast.training.assemble import build_student, load_images, method_context, seed_of
from tfkd_fast.training.cooldown import cooled
from tfkd_fast.training.epoch import Diverged, EpochRun, EpochTrainer
from tfkd_fast.training.groups import choose_side_by_side
from tfkd_fast.training.population import Population


class Trainer:
    """A run in progress: `run()` trains what is left of it."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, compute: Compute, folder: RunFolder, listeners: Sequence[Listener]
    ) -> None:
        self.dataset, self.compute, self.folder = dataset, compute, folder
        self._listeners = listeners
        images = load_images(recipe, dataset, compute)
        self.loader, self.holdout_loader = images.fit.with_augmentation_period(recipe.repeated_views), images.holdout
        self.train_images, self.holdout_images = images.num_fit, images.num_holdout
        self._loader_choice = images.choice
        self.recipe = recipe.with_loader(self.loader.name)  # from here on the recipe names it
        teachers = load_teachers(recipe, dataset, compute)
        context = method_context(recipe, dataset, self.train_images, compute, teachers)
        self.method = find_method(recipe.method).build(recipe.options, context)
        if recipe.data.mix != "none" and not self.method.needs.mixing:
            raise UserError(f"method {recipe.method} learns from predictions of single images: set data.mix to none")
        needs = self.method.needs
        if needs.holdout and self.holdout_loader is None:
            raise UserError(f"method {recipe.method} is steered by held-out images: set data.holdout above 0")
        build = partial(build_student, recipe, dataset, compute, recipe.seed)
        self.population = Population(build, needs.candidates, slow=needs.slow_decay is not None)
        if needs.own_weights:
            for slot in range(1, needs.candidates):
                model = build_student(recipe, dataset, compute, seed_of(recipe.seed, slot))
                self.population.start_from(slot, model)
        self._judge = Judge(images.fit, images.holdout, compute, build)
        self._adapters = Adapters(self.method.adapters)
        self._teachers = gather_teachers(teachers, needs, self.recipe, dataset, self.loader, compute)
        self._saw_holdout = trained_on_holdout(teachers, dataset, recipe.data.holdout)
        self._unseen = unseen_indices(teachers, dataset, recipe.data.holdout)
        self._epochs = EpochTrainer(
            self.population,
            self.method,
            self.loader,
            compute,
            recipe.optimizer,
            choose_side_by_side(recipe.population),
            self._on_batch,
            adapters=self._adapters,
            teachers=self._teachers,
            holdout=self.holdout_loader,
            mixing=make_mixing(recipe.data, recipe.seed),
        )
        self._epoch = 0
        self._plan: Plan | None = None  # of the interval that is being trained; None between two
        self._alive = 1  # slots that hold a candidate of their own between intervals
        self._student_epochs = 0
        self._images_trained = 0
        self._best_epoch, self._best_top1 = 0, -1.0
        self._log: RunLog  # opened by run()

    def run(self) -> dict[str, Any]:
        """Train to the last epoch; returns what training adds to the summary. The test set is not read."""
        self._restore()
        while self._epoch < self.recipe.epochs:
            if self._plan is None:
                with self._log.timed("steering"):
                    self._plan = plan = self.method.begin_interval(self._epoch)
                    if plan.schedule is not None and plan.schedule[0] == self._epoch:
                        self.population.forget_momenta()
                        self._adapters.forget_momenta()
                    self._log.write(*plan.events)
            self._run_epoch(self._plan)
            if self._epoch % self.recipe.checkpoint_every == 0 or self._epoch == self.recipe.epochs:
                with self._log.timed("saving"):
                    self._save()
        self._save_student(self.folder.student, self.population.models[0])
        for name, content in self.method.files().items():
            self.folder.write_bytes(name, content)
        summary = self._summary() | self.method.summary()
        del self.method, self._epochs  # no controller lives on into the test,
        gc.collect()  # and none waits in a cycle
        return summary

    def _run_epoch(self, plan: Plan) -> None:
        """Train every candidate for one epoch, judge it, and at the interval's end let one live on."""
        interval, averages = plan.interval, self.method.needs.averages
        last = self._epoch + 1 == interval.end
        rates = self.recipe.learning_rates(self._epoch, self._epochs.steps(plan), plan.schedule)
        with self._explained():
            runs = self._epochs.run(plan, self._epoch, rates, average=last and "epoch" in averages)
        self._count(runs)
        if "interval" in averages and interval.candidates > 1:
            if self._epoch == interval.first_epoch:
                self.population.interval_average.restart()
            self.population.interval_average.add(interval.candidates)
        with self._log.timed("evaluation"):
            models = self.population.models[: interval.candidates]
            judged = self._judge.judgements([plan.network(model) for model in models], plan.known_labels)
            holdout = [judgement and judgement.metrics for judgement in judged]
        self._epoch += 1
        with self._log.timed("steering"):
            self._log.write(*(self._epoch_event(plan, slot, run, holdout[slot]) for slot, run in enumerate(runs)))
            pairs = zip(runs, judged, strict=True)
            results = [EpochResult(run.training, *(judgement or (None, None))) for run, judgement in pairs]
            self._log.write(*self.method.end_epoch(results))
        if last:
            self._end_interval(plan, runs, holdout)

    def _end_interval(self, plan: Plan, runs: list[EpochRun], holdout: list[HoldoutMetrics | None]) -> None:
        outcome = Outcome(tuple(range(len(runs))))
        if isinstance(self.method, SteeredMethod):
            outcome = self._judged(self.method, plan, runs, holdout)
        if plan.complete:
            best = outcome.survivors[0]
            self._keep_best(self.population.models[best], holdout[best])
        self.population.continue_from(outcome.survivors)
        self._alive = len(outcome.survivors)
        self._plan = None

    def _judged(
        self, method: SteeredMethod, plan: Plan, runs: list[EpochRun], holdout: list[HoldoutMetrics | None]
    ) -> Outcome:
        """Show a method what its candidates are worth at the end of an interval."""
        population, models = self.population, self.population.models[: len(runs)]
        cooled_metrics = self._cooled(method, plan)
        with self._log.timed("evaluation"):
            epoch_averages = self._judge.average_metrics(population.epoch_average, len(runs), self._epoch)
            interval_averages = self._judge.average_metrics(population.interval_average, len(runs), self._epoch)
        with self._log.timed("steering"):
            outcome = method.end_interval(
                [
                    IntervalResult(
                        runs[slot].training,
                        holdout[slot],
                        epoch_averages[slot],
                        interval_averages[slot],
                        cooled_metrics[slot],
                        self._judge.influence(model, self._epoch),
                    )
                    for slot, model in enumerate(models)
                ]
            )
            self._log.write(*outcome.events)
        return outcome

    def _cooled(self, method: SteeredMethod, plan: Plan) -> list[HoldoutMetrics | None]:
        if not method.needs.cooldown_epochs:
            return [None] * plan.interval.candidates
        rate = self.recipe.learning_rate(self._epoch)
        with self._explained(), cooled(self._epochs, method, plan, self._epoch, rate) as runs:
            self._count(runs)
            with self._log.timed("evaluation"):
                return self._judge.metrics(self.population.models[: plan.interval.candidates])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says of a run that diverged which of its checkpoints is good."""
        try:
            yield
        except Diverged as error:
            saved = self.folder.checkpoint_files()
            last_good = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
            raise UserError(f"{error}; {last_good}: lower optimizer.learning_rate or use --precision fp32") from None

    def _count(self, runs: list[EpochRun]) -> None:
        """Take in what epochs of candidates have cost."""
        self._student_epochs += len(runs)
        self._images_trained += sum(run.images for run in runs)
        self._log.seconds["training"] += sum(run.seconds for run in runs)
        set_up = sum(run.set_up_seconds for run in runs)
        if set_up:
            self._log.seconds["compile"] += set_up
            self._log.write(StepsCompiled(epoch=self._epoch + 1, seconds=set_up))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the last line of the log."""
        self._log.write(RunFinished(**summary))
        self._log.close()

    def _on_batch(self, images: int) -> None:
        self._log.batch(images)

    def _keep_best(self, model: nn.Module, holdout: HoldoutMetrics | None) -> None:
        if holdout is not None and holdout.top1 > self._best_top1:
            self._best_epoch, self._best_top1 = self._epoch, holdout.top1
            self._save_student(self.folder.best, model)

    def _save_student(self, path: Path, model: nn.Module) -> None:
        save_student(path, model, self.recipe.model, self.dataset, self.recipe.data.holdout)

    # Set-up, checkpoints, log.

    def _restore(self) -> None:
        """Go on from the newest checkpoint, or write the first line of a new log."""
        state = self.folder.newest_state()
        if state is None:
            self._log = RunLog(self.folder.metrics, self._listeners)
            self._log.write(RunStarted(**self._facts(), classes=tuple(self.dataset.classes), format=FORMAT))
            if self._loader_choice is not None:
                self._log.write(LoaderChosen(**asdict(self._loader_choice)))
            with self._log.timed("steering"):
                self._log.write(*self.method.prepare(self._material()))
            return
        if state["recipe"] != self.folder.recipe.read_text():
            raise UserError(f"the checkpoints in {self.folder.path} were written with another recipe.toml: restore it")
        if state["teachers"] != self._teachers.checksums:
            raise UserError(
                f"the teachers of the run in {self.folder.path} are not those that it began with: restore them"
            )
        self._log = RunLog(
            self.folder.metrics,
            self._listeners,
            keep=state["log_bytes"],
            earlier_seconds=state["seconds"],
            seconds=state["seconds_of"],
        )
        self.population.load_state_dict(state["population"])
        self._adapters.load_state_dict(state["adapters"])
        self.method.load_state_dict(state["method"])
        self._epoch = state["epoch"]
        self._plan = self.method.resume_interval(Interval(*state["interval"])) if state["interval"] else None
        self._alive = state["alive"]
        self._student_epochs, self._images_trained = state["student_epochs"], state["images_trained"]
        self._best_epoch, self._best_top1 = state["best_epoch"], state["best_top1"]
        self._log.write(RunResumed(epoch=self._epoch, **self._facts()))

    def _save(self) -> None:
        interval = self._plan and self._plan.interval
        self.folder.save_checkpoint(
            self._epoch,
            {
                "recipe": self.folder.recipe.read_text(),
                "population": self.population.state_dict(interval.candidates if interval else self._alive),
                "adapters": self._adapters.state_dict(),
                "teachers": self._teachers.checksums,
                "method": self.method.state_dict(),
                "loader": self.loader.name,
                "epoch": self._epoch,
                "interval": list(asdict(interval).values()) if interval else None,
                "alive": self._alive,
                "student_epochs": self._student_epochs,
                "images_trained": self._images_trained,
                "seconds_of": dict(self._log.seconds),
                "seconds": self._log.elapsed(),
                "best_epoch": self._best_epoch,
                "best_top1": self._best_top1,
                "log_bytes": self._log.size(),
            },
        )

    def _material(self) -> Material:
        unseen = None if self._unseen is None else self.loader.with_indices(self._unseen).epoch
        return Material(self.loader.epoch, unseen, lambda images: self._teachers.predict(images.unsqueeze(0)))

    def _facts(self) -> dict[str, Any]:
        """What identifies a run, in the log and in the summary."""
        recipe = self.recipe
        return {
            "method": recipe.method,
            "dataset": self.dataset.name,
            "model": recipe.model.name,
            "seed": recipe.seed,
            "epochs": recipe.epochs,
            "device": self.compute.device.type,
            "device_name": self.compute.device_name,
            "precision": self.compute.precision,
            "loader": self.loader.name,
            "ops": ops.backend_of("soft_target_loss", self.compute.device),
            "parameters": sum(p.numel() for p in self.population.models[0].parameters()),
            "train_images": self.train_images,
            "holdout_images": self.holdout_images,
            "steered_by_holdout": self.method.needs.holdout,
            "candidates": self.method.needs.candidates,
            "teachers": [teacher.facts.name for teacher in self._teachers.teachers],
            "teachers_saw_holdout": self._saw_holdout,
            "population": self._epochs.side_by_side,
            "compile": self.compute.compile,
            "version": tfkd_fast.__version__,
            "torch": str(torch.__version__),
        }

    def _epoch_event(self, plan: Plan, slot: int, run: EpochRun, holdout: HoldoutMetrics | None) -> EpochEnded:
        """Accuracies leave the engine in percent."""
        training = run.training
        return EpochEnded(
            epoch=self._epoch,
            candidate=slot,
            learning_rate=plan.factors[slot] * self.recipe.learning_rate(self._epoch - 1, plan.schedule),
            train_loss=training.loss,
            terms=training.terms,
            train_top1=100 * training.top1,
            true_probability=training.true_probability,
            entropy=training.entropy,
            images_per_second=run.images / run.seconds,
            seconds=run.seconds,
            holdout=HoldoutFigures(**in_percent(holdout)) if holdout else None,
            holdout_classes=len(plan.known_labels or self.dataset.classes) if holdout else None,
        )

    def _summary(self) -> dict[str, Any]:
        return self._facts() | {
            "epoch_rule": "last",
            "best_epoch": self._best_epoch or None,
            "best_holdout_top1": 100 * self._best_top1 if self._best_epoch else None,
            "student_epochs": self._student_epochs,
            "images_per_second": self._images_trained / self._log.seconds["training"],
            **{f"{part}_seconds": seconds for part, seconds in self._log.seconds.items()},
            "seconds": self._log.elapsed(),
        }


def in_percent(metrics: HoldoutMetrics) -> dict[str, float]:
    """The figures by name, top-1 and top-5 in percent as users of timm expect, the others as they are."""
    values = asdict(metrics)
    return values | {name: 100 * values[name] for name in ("top1", "top5")}
