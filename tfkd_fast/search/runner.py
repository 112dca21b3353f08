"""Trains the trials of a search, several at a time, each in a process of its own that leaves a run folder.

A search may be stopped or killed at any time: trials that have begun go on from their newest checkpoints, and what
follows is what would have followed.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from optuna.trial import FrozenTrial

from tfkd_fast.device import resolve_compute
from tfkd_fast.errors import UserError
from tfkd_fast.events import HoldoutFigures
from tfkd_fast.files import to_checked_json, write_bytes
from tfkd_fast.methods import find_method
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.lock import lock_folder
from tfkd_fast.runs.recipe import read_recipe
from tfkd_fast.runs.stop import Stop
from tfkd_fast.search.folder import SearchFolder
from tfkd_fast.search.page import render
from tfkd_fast.search.plan import Search
from tfkd_fast.search.results import SearchResults, TrialRecord, as_csv, as_json, make_record
from tfkd_fast.search.trials import ENDED, Suggestion, Trials
from tfkd_fast.study.executors import (
    POLL,
    Executor,
    LocalExecutor,
    Processes,
    RunOrder,
    RunProcess,
    end_reason,
    wait_for_all,
)
from tfkd_fast.study.progress import RunProgress

LOOK = 1.0
"""Seconds between two looks at the logs of the trials."""

NO_PLACE = "cannot write"
"""The beginning of the sentence of a run whose disk is full or gone."""


class LiveTrial:
    """A trial in progress."""

    def __init__(self, suggestion: Suggestion, folder: RunFolder) -> None:
        self.suggestion, self.folder = suggestion, folder
        self.epochs = self.student_epochs = 0
        """What it trains at most, without and with all of its candidates."""
        self.process: RunProcess | None = None
        """The process that trains it; None where there is nothing to train."""
        self.fault = ""
        """Why it cannot be trained; empty where it can."""
        self.progress = RunProgress(folder)
        """How far it was at the latest look."""
        self.pruned = False
        """Whether it is worse than most."""

    @property
    def number(self) -> int:
        """The number of the trial."""
        return self.suggestion.number


class SearchRunner:
    """A search in progress, a context manager that holds its folder: `run()` trains what is left of it."""

    def __init__(
        self,
        search: Search,
        folder: SearchFolder,
        *,
        trials: int,
        jobs: int | None = None,
        executor: Executor | None = None,
    ) -> None:
        """A search of so many trials, which train in processes of this machine, `jobs` at a time: without it one on
        CUDA, one a core otherwise; or by an executor.

        Raises:
            UserError: the folder holds something else than this search.
        """
        folder.refuse_another(search)
        self.search, self.folder, self.planned = search, folder, trials
        compute = resolve_compute(search.base.device, search.base.precision)
        self._executor = executor or LocalExecutor(jobs, on_cuda=compute.device.type == "cuda")
        self.jobs = self._executor.jobs
        self._files = ExitStack()
        self._live: dict[int, LiveTrial] = {}
        self._looked = -math.inf

    def __enter__(self) -> Self:
        with ExitStack() as files:
            self._locks = files.enter_context(lock_folder(self.folder.path))
            self.folder.refuse_another(self.search)  # another process may have been quicker
            self.folder.create(self.search)
            self._trials = Trials(self.search, self.folder.journal)
            files.callback(self._trials.close)
            self._files = files.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @property
    def live(self) -> list[LiveTrial]:
        """The trials that are in progress."""
        return list(self._live.values())

    def results(self) -> SearchResults:
        """All trials, with what came of them by now."""
        records = [self._record(trial) for trial in self._trials.all]
        return SearchResults(self.search, max(self.planned, sum(record.has_ended for record in records)), records)

    def run(self, on_end: Callable[[TrialRecord], None], on_look: Callable[[], None], stop: Stop) -> None:
        """Train what is left, and write what was found after every trial.

        Args:
            on_end: called with every trial that ended.
            on_look: called a few times a second.
            stop: asks for an end before that; the trials end when what they have trained is saved, as after a signal.

        Raises:
            Stopped: `stop` asked for it.
            UserError: a file cannot be written; or no trial can begin, for the same reason perhaps.
        """
        self.write()
        if self._next() is not None:
            with self._executor.processes(self.folder.path, self._locks) as source:
                self._train(source, on_end, on_look, stop)
        stop.check()

    def _train(
        self,
        source: Processes,
        on_end: Callable[[TrialRecord], None],
        on_look: Callable[[], None],
        stop: Stop,
    ) -> None:
        stop.resumable = stop.unsaved = True  # now there may be epochs that no checkpoint has
        try:
            while stop.requested is None and (self._next() is not None or self._live):
                self._start_ready(source)
                self._look()
                ended = self._ended(source)
                for number in ended:
                    self._conclude(self._live[number])
                    del self._live[number]
                    on_end(self._record(self._trials.all[number]))
                if ended:
                    self._start_ready(source)  # so that no core waits for the page
                    self.write(in_progress=True)
                on_look()
        finally:
            source.end_all()
            wait_for_all([trial.process for trial in self._live.values() if trial.process])
            stop.unsaved = False
        if stop.requested is None:
            self.write()

    def _next(self) -> int | None:
        """The number of the trial to be started next, one that an earlier process began or a new one; None where all
        are in progress or have ended."""
        trials = self._trials.all
        for trial in trials[: self.planned]:
            if trial.state not in ENDED and trial.number not in self._live:
                return trial.number
        return len(trials) if len(trials) < self.planned else None

    def _start_ready(self, source: Processes) -> None:
        """Start trials in their order, as many as may train."""
        while len(self._live) < self.jobs and (following := self._next()) is not None:
            suggestion = self._trials.begin(following, self.jobs)
            if suggestion is None:
                return
            self._live[suggestion.number] = self._start(suggestion, source)

    def _start(self, suggestion: Suggestion, source: Processes) -> LiveTrial:
        number = suggestion.number
        trial = LiveTrial(suggestion, self.folder.trial(number))
        try:
            recipe = self.search.recipe({**suggestion.values, "test": False})
        except UserError as error:  # values that the recipe takes in pairs, and not together
            trial.fault = str(error)
            return trial
        trial.epochs = recipe.epochs
        trial.student_epochs = find_method(recipe.method).student_epochs(recipe.options, recipe.epochs)
        if (known := trial.folder.recipe).exists():
            found = read_recipe(trial.folder).with_data_root(recipe.data.root)
            if found != recipe:
                raise UserError(f"{known} has other values than trial {number}: delete that folder, or restore it")
        self._judge(trial)
        if trial.pruned or trial.folder.summary.exists():  # its process outlived the one that started it
            return trial
        log, root = self.folder.log(number), recipe.data.root
        order = RunOrder(self.folder.recipe(number), trial.folder.path, log, data_root=root)
        order.prepare(recipe)
        trial.process = source.start(order)
        return trial

    def _look(self) -> None:
        """Look at the logs of the trials, once a second, and end those that are to be pruned."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        for trial in self._live.values():
            if not trial.pruned:
                self._judge(trial)
                if trial.pruned and trial.process:
                    trial.process.terminate()

    def _judge(self, trial: LiveTrial) -> None:
        """Take in the epochs that are whole, as another one follows them, and see whether the trial is to be pruned."""
        trial.progress = RunProgress(trial.folder)  # from the start: a trial that goes on has cut its log
        trial.progress.look()
        for epoch in sorted(trial.progress.judged)[:-1]:
            figure = self._judgement(trial.progress.judged[epoch])
            if epoch not in trial.suggestion.judged and figure is not None:
                trial.pruned = trial.suggestion.report(epoch, figure)
            if trial.pruned:
                return

    def _judgement(self, candidates: list[HoldoutFigures]) -> float | None:
        """The judgement of the best of several candidates; None where none has any."""
        top1 = self.search.settings.judge == "top1"
        figures = [figure.top1 if top1 else figure.calibrated_nll for figure in candidates]
        known = [figure for figure in figures if math.isfinite(figure)]
        return (max(known) if top1 else min(known)) if known else None

    def _ended(self, source: Processes) -> list[int]:
        """Numbers of the trials whose processes ended; if there are none, wait a little."""
        trials = self._live.values()
        ended = [trial.number for trial in trials if not trial.process or trial.process.poll() is not None]
        if trials and not ended:
            source.pause(POLL)
        return ended

    def _conclude(self, trial: LiveTrial) -> None:
        """Record what came of a trial whose process ended.

        Raises:
            UserError: it failed, and not by its values: the trial can go on later.
        """
        if trial.fault:
            self._trials.fail(trial.suggestion, trial.fault)
            return
        if not trial.pruned:
            self._judge(trial)
        judged = trial.progress.judged
        if trial.pruned:
            self._trials.prune(trial.suggestion, self._figures(judged[max(trial.suggestion.judged)]))
        elif (summary := trial.folder.read_summary()) is None:
            self._trials.fail(trial.suggestion, self._fault(trial))
        else:
            if judged and (figure := self._judgement(judged[max(judged)])) is not None:
                trial.suggestion.report(max(judged), figure)
            name = "holdout_top1" if self.search.settings.judge == "top1" else "holdout_calibrated_nll"
            figures = {"top1": summary["holdout_top1"], "nll": summary["holdout_calibrated_nll"]}
            self._trials.complete(trial.suggestion, float(summary[name]), figures)

    def _fault(self, trial: LiveTrial) -> str:
        """Why a trial failed by its values: it diverged, or could not begin, or is ended from outside again and again,
        as systems do that run out of memory.

        Raises:
            UserError: it failed for another reason, or the first time, or no trial got further.
        """
        if trial.progress.divergence:
            return f"it diverged: {trial.progress.divergence}"
        code = trial.process.poll() or 0 if trial.process else 0
        reason = end_reason(self.folder.log(trial.number), code)
        others = any(other.intermediate_values for other in self._trials.all)
        could_not_begin = others and not trial.progress.judged and not reason.startswith(NO_PLACE)
        if self._trials.interrupt(trial.suggestion) if code < 0 else could_not_begin:
            return reason
        raise UserError(f"trial {trial.number} is not finished: {reason}; the same command again goes on with it")

    def _figures(self, candidates: list[HoldoutFigures]) -> dict[str, float]:
        best = next(figure for figure in candidates if self._judgement([figure]) == self._judgement(candidates))
        return {"top1": best.top1, "nll": best.calibrated_nll}

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        return make_record(trial, self._trials.values(trial), trial.number in self._live)

    def write(self, *, in_progress: bool = False) -> None:
        """Write the trials as JSON and CSV, the best recipe, and the page."""
        results = self.results()
        write_bytes(self.folder.table, to_checked_json(as_json(results)).encode())
        write_bytes(self.folder.csv, as_csv(results).encode())
        if results.best is not None:
            write_bytes(self.folder.best, self.search.recipe(results.best.values).to_toml().encode())
        write_bytes(self.folder.page, render(results, self.folder, in_progress=in_progress).encode())
