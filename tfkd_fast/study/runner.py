"""Trains the runs of a study, several at a time, each in a process of its own that leaves a run folder.

A study may be stopped at any time: what is finished stays, what is not goes on from its newest checkpoint. Its page is
written while it trains.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfkd_fast.device import resolve_compute
from tfkd_fast.errors import UserError
from tfkd_fast.files import read_checked_json, reading
from tfkd_fast.runs.folder import RunFolder, refuse_if_foreign
from tfkd_fast.runs.lock import LOCK, lock_folder
from tfkd_fast.runs.recipe import Recipe, read_recipe
from tfkd_fast.runs.replay import replay_recipe
from tfkd_fast.runs.stop import Stop
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
from tfkd_fast.study.plan import Row, Study
from tfkd_fast.study.results import ResultRow, StudyResults
from tfkd_fast.study.stored import ResultsFiles

if TYPE_CHECKING:
    from tfkd_fast.study.page import ResultsPage, RunFolders

FIRST_PAGE = 5.0
"""Seconds after the start when the page is written first: a study that takes less has it at its end."""
NEXT_PAGE = 30.0
"""Seconds at least from one page to the next."""
PAGES_SHARE = 0.05
"""Share of the time that pages may take."""


@dataclass(frozen=True)
class Run:
    """A run of a study: one row under one seed."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """The name of the run in messages and of its files."""
        return f"{self.row.name}-seed{self.seed}"


def runs_of(study: Study, rows: Iterable[Row], seeds: Iterable[int]) -> list[Run]:
    """The runs of rows under seeds, seed by seed, each once: a study that is stopped early has whole paired seeds."""
    return list(dict.fromkeys(Run(row, study.seed_of(row, seed)) for seed in seeds for row in rows))


class StudyFolder:
    """The folder of a study: recipes/, runs/ and logs/ with one entry a run, and the files of its results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = [path / name for name in ("recipes", "runs", "logs")]
        self.files = ResultsFiles(path)

    def recipe(self, run: Run) -> Path:
        """The recipe file that a run is started with."""
        return self.path / "recipes" / f"{run.name}.toml"

    def run(self, run: Run) -> RunFolder:
        """The run folder of a run."""
        return RunFolder(self.path / "runs" / run.name)

    def log(self, run: Run) -> Path:
        """The file with the output of the process of a run."""
        return self.path / "logs" / f"{run.name}.txt"

    def refuse_if_foreign(self) -> None:
        """Raise UserError if the folder holds something else than a study; what lies beside a study may stay there."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose another --out")
        if self.path.exists() and not all(part.is_dir() for part in self._parts) and not self._has_results():
            refuse_if_foreign(self.path, ours={LOCK, *(part.name for part in self._parts)})

    def _has_results(self) -> bool:
        """Whether results.json is that of a study, whose folders somebody may have deleted."""
        try:
            return {"study", "baseline", "runs"} <= read_checked_json(self.files.results, "the results", "").keys()
        except UserError:
            return False

    def others(self, study: Study) -> list[str]:
        """Names of run folders that belong to no row of the study, such as those of a row that had another name."""
        ours = re.compile("(" + "|".join(map(re.escape, study.rows)) + r")-seed\d+")
        folders = (path for path in self.path.glob("runs/*") if RunFolder(path).recipe.exists())
        return sorted(path.name for path in folders if not ours.fullmatch(path.name))

    def create(self) -> None:
        """Make the folder.

        Raises:
            UserError: it cannot be written to.
        """
        try:
            for part in self._parts:
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None

    def finished(self, study: Study, seeds: Sequence[int]) -> dict[str, dict[int, dict[str, Any]]]:
        """Row -> seed -> summary of every finished run."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for run in runs_of(study, study.rows.values(), seeds):
            if summary := self.run(run).read_summary():
                found.setdefault(run.row.name, {})[run.seed] = summary
        return found


class Runner:
    """A study in progress: `run()` trains what is left of it."""

    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        *,
        rows: Sequence[Row],
        seeds: Sequence[int],
        jobs: int | None = None,
        executor: Executor | None = None,
        on_end: Callable[[Run, str | None], None],
        on_look: Callable[[], None] | None = None,
    ) -> None:
        """Runs of `rows` under `seeds`; `on_end` is called for each that ended, with the reason if it failed, and
        `on_look` a few times a second.

        The table has all rows of the study, under the seeds of the study and those given here. They train in
        processes of this machine, `jobs` at a time: without it one on CUDA, one a core otherwise; or by an executor.

        Raises:
            UserError: the folder holds something else than a study, or a run by another recipe.
        """
        folder.refuse_if_foreign()
        self.study, self.folder, self._on_end, self._on_look = study, folder, on_end, on_look
        self.seeds = [*study.seeds, *(seed for seed in seeds if seed not in study.seeds)]
        for run in self._planned_runs():
            self._refuse_another_recipe(run)
        wanted = runs_of(study, rows, seeds)
        self.waiting = [run for run in wanted if not self._is_finished(run)]
        self.already_finished = len(wanted) - len(self.waiting)
        self._executor = executor or LocalExecutor(jobs, on_cuda=any(_uses_cuda(row) for row in rows))
        self.jobs = self._executor.jobs
        self._running: dict[Run, RunProcess] = {}
        self._page = RefreshedPage(
            folder.files.page, {(run.row.name, run.seed): folder.run(run) for run in self._planned_runs()}
        )
        self.failed_now = False
        """Whether a run failed since this runner was made."""
        self.failures = self._earlier_failures()
        """Reason of every run that failed, in this call or an earlier one, by name."""

    def run(self, stop: Stop | None = None) -> None:
        """Train, and write the table after every run; a run that fails does not stop the others.

        Args:
            stop: asks for an end before that; the runs end when what they have trained is saved, as after a signal.

        Raises:
            Stopped: `stop` asked for it.
        """
        stop = stop or Stop()
        with lock_folder(self.folder.path) as locks:
            self.folder.create()
            self.write_results()
            if self.waiting:
                self._train(locks, stop)
            self._page.write(self.results())
            stop.check()

    def _train(self, locks: list[int], stop: Stop) -> None:
        """Train all that is left."""
        with self._executor.processes(self.folder.path, locks) as source:
            stop.resumable = stop.unsaved = True  # now there may be epochs of its runs that no checkpoint has
            try:
                while stop.requested is None and (self.waiting or self._running):
                    self._start_ready(source)
                    self._collect_ended(source)
                    if self._on_look is not None:
                        self._on_look()
                    if self._running and self._page.is_due():
                        self._page.write(self.results(), in_progress=True)
            finally:
                source.end_all()
                wait_for_all(self._running.values())
                stop.unsaved = False

    @property
    def running(self) -> list[Run]:
        """The runs that are in progress."""
        return list(self._running)

    def _planned_runs(self) -> list[Run]:
        """Every run of the study, also of rows that are not trained now."""
        return runs_of(self.study, self.study.rows.values(), self.seeds)

    def _is_finished(self, run: Run) -> bool:
        folder = self.folder.run(run)
        return folder.summary.exists() and not folder.lacks_report_only

    def results(self) -> StudyResults:
        """What the runs that are finished by now come to."""
        return StudyResults(
            name=self.study.name,
            seeds=tuple(self.seeds),
            baseline=self.study.baseline.name,
            rows={row.name: ResultRow(row.title, row.compared, row.shared) for row in self.study.rows.values()},
            runs=self.folder.finished(self.study, self.seeds),
            contrasts=self.study.contrasts,
            failures=self.failures,
        )

    def write_results(self) -> None:
        """Write the table and the figures of the runs that are finished by now."""
        self.folder.files.write(self.results())

    def _earlier_failures(self) -> dict[str, str]:
        """The failures in results.json, of runs that are neither finished by now nor to be trained again."""
        try:
            with reading(self.folder.files.results, "the results", ""):
                failures = dict(read_checked_json(self.folder.files.results, "the results", "")["failures"])
        except UserError:  # no table yet, or damaged: it is written anew
            return {}
        left = [
            run for run in self._planned_runs() if run not in self.waiting and not self.folder.run(run).summary.exists()
        ]
        return {run.name: str(failures[run.name]) for run in left if run.name in failures}

    def _start_ready(self, source: Processes) -> None:
        """Start runs in their order, as many as may run; one that needs others waits for them."""
        for run in list(self.waiting):
            if len(self._running) == self.jobs:
                return
            if any(needed in self.waiting or needed in self._running for needed in self._sources(run)):
                continue
            self.waiting.remove(run)
            try:
                self._running[run] = self._start(run, source)
            except UserError as error:
                self._end(run, str(error))

    def _start(self, run: Run, source: Processes) -> RunProcess:
        for needed in self._sources(run):
            if not self.folder.run(needed).summary.exists():
                raise UserError(f"it needs {needed.name}, which is not there: train that row, too")
        self._refuse_another_recipe(run)
        order = RunOrder(self.folder.recipe(run), self.folder.run(run).path, self.folder.log(run))
        order.prepare(self._recipe(run))
        return source.start(order)

    def _collect_ended(self, source: Processes) -> None:
        """Collect the processes that ended; if there are none, wait a little."""
        codes = [(run, process.poll()) for run, process in self._running.items()]
        ended = [(run, code) for run, code in codes if code is not None]
        for run, code in ended:
            del self._running[run]
            self._end(run, None if self.folder.run(run).summary.exists() else end_reason(self.folder.log(run), code))
        if self._running and not ended:
            source.pause(POLL)

    def _end(self, run: Run, failure: str | None) -> None:
        if failure is not None:
            self.failures[run.name], self.failed_now = failure, True
        self.write_results()
        self._on_end(run, failure)

    def _sources(self, run: Run) -> list[Run]:
        """The runs that a run needs: the one that it replays, or its teachers."""
        return [self._source(run, name) for name in run.row.sources]

    def _source(self, run: Run, name: str) -> Run:
        """The run of a row that a run of another row refers to."""
        row = self.study.rows[name]
        return Run(row, self.study.seed_of(row, run.seed))

    def _recipe(self, run: Run) -> Recipe:
        if run.row.replay:
            return replay_recipe(self.folder.run(self._sources(run)[0]).path)

        def folder_of(name: str) -> str:
            return str(self.folder.run(self._source(run, name)).path.resolve())

        return run.row.recipe(run.seed, folder_of)

    def _refuse_another_recipe(self, run: Run) -> None:
        """Raise UserError if the run's folder holds a run by another recipe, as far as that can be known by now."""
        run_folder = self.folder.run(run)
        if run_folder.summary.exists() and not run_folder.recipe.exists():
            raise UserError(
                f"{run_folder.path} lacks its recipe.toml: restore it, or delete that folder to train it again"
            )
        known = not run.row.replay or self.folder.run(self._sources(run)[0]).summary.exists()
        if run_folder.recipe.exists() and known and read_recipe(run_folder) != self._recipe(run):
            raise UserError(
                f"{run_folder.path} holds a run by another recipe than the study's: "
                "choose another --out, or delete that folder to train it again"
            )


class RefreshedPage:
    """The page of a study, which is written from time to time while its runs train."""

    def __init__(self, path: Path, folders: "RunFolders") -> None:
        self._path, self._folders = path, folders
        self._page: ResultsPage | None = None
        self._next = time.monotonic() + FIRST_PAGE

    def is_due(self) -> bool:
        """Whether it is time to write it again."""
        return time.monotonic() >= self._next

    def write(self, results: StudyResults, *, in_progress: bool = False) -> None:
        """Write it, see `ResultsPage`."""
        from tfkd_fast.study.page import ResultsPage  # takes a second to import

        started = time.monotonic()
        self._page = self._page or ResultsPage(self._path, self._folders)
        self._page.write(results, in_progress=in_progress)
        ended = time.monotonic()
        self._next = ended + max(NEXT_PAGE, (ended - started) / PAGES_SHARE)


def _uses_cuda(row: Row) -> bool:
    """Whether a row computes on CUDA; a replay computes where the row that it replays does."""
    if row.replay is not None:
        return False
    recipe = row.recipe(0)
    return resolve_compute(recipe.device, recipe.precision).device.type == "cuda"
