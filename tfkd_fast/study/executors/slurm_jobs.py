"""Runs as jobs of a Slurm cluster, one a run, by submitit; a job that is preempted, or out of time, goes on later."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfkd_fast.errors import UserError
from tfkd_fast.study.executors.on_node import Task, make_task, process_of
from tfkd_fast.study.executors.protocol import POLL, Processes, RunOrder, RunProcess

FOLDER = "slurm"
"""The folder in that of the study where submitit keeps the scripts, the pickles and the output of jobs."""
MINUTES = 24 * 60
"""The time limit of a job where none is given (our choice): one that reaches it goes on in another."""
REQUEUES = 100
"""How often a job may reach its time limit and go on (our choice)."""
NOTICE = 60.0
"""Seconds in which the signal of a preemption is waited for once a run has ended by another: Slurm sends SIGTERM to all
processes of a job before that signal."""
CLUSTER = "TFKD_FAST_SLURM"
"""The environment variable with another kind of cluster that submitit knows: local starts jobs as processes of this
machine, debug runs each as it is asked for."""


class SlurmExecutor:
    """Trains runs as jobs of Slurm."""

    def __init__(self, jobs: int, *, cpus: int, gpus: int, parameters: Mapping[str, str]) -> None:
        """So many jobs at a time, each with so many cores, which are its threads too, and so many GPUs; and parameters
        of sbatch, as submitit names them."""
        self.jobs, self._cpus, self._gpus, self._parameters = jobs, cpus, gpus, parameters

    @contextmanager
    def processes(self, folder: Path, locks: Sequence[int]) -> Iterator[Processes]:
        """See `Executor.processes`."""
        try:
            import submitit
        except ImportError:
            raise UserError("executor slurm needs submitit: pip install 'tfkd-fast[slurm]'") from None
        cluster = os.environ.get(CLUSTER, "slurm")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError("no Slurm here, as there is no command sbatch: run this where jobs are submitted")
        try:
            place = submitit.AutoExecutor(folder.absolute() / FOLDER, cluster=cluster, slurm_max_num_timeout=REQUEUES)
            place.update_parameters(cpus_per_task=self._cpus, timeout_min=MINUTES)
            place.update_parameters(gpus_per_node=self._gpus or None)
            place.update_parameters(**{f"slurm_{name}": _number(value) for name, value in self._parameters.items()})
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise UserError(f"--slurm: {' '.join(str(error).split())}") from None
        yield SlurmJobs(place, self._cpus)


class SlurmJobs(Processes):
    """Submits jobs, as many as are asked for: Slurm lets them wait for room."""

    def __init__(self, place: Any, cpus: int) -> None:
        self._place, self._cpus = place, cpus
        self._living: list[SlurmJob] = []

    def start(self, order: RunOrder) -> RunProcess:
        self._place.update_parameters(name=order.folder.name)
        try:
            submitted = self._place.submit(TrainRun(), make_task(order, self._cpus))
        except Exception as error:  # FailedJobError, or what sbatch could not be started by
            raise UserError(f"sbatch took no job: {' '.join(str(error).split())}") from None
        job = SlurmJob(submitted, order.log)
        self._living = [each for each in self._living if each.code is None]
        self._living.append(job)
        return job

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def end_all(self) -> None:
        for job in self._living:
            job.terminate()


class SlurmJob(RunProcess):
    """A job that trains a run."""

    def __init__(self, job: Any, log: Path) -> None:
        self._job, self._log = job, log
        self._cancelled = False
        self.code: int | None = None
        """The exit code, once it is known."""

    def poll(self) -> int | None:
        if self.code is None and self._job.done():
            self.code = self._find_code()
        return self.code

    def terminate(self) -> None:
        if self.poll() is None:
            self._cancelled = True
            self._job.cancel(check=False)

    def kill(self) -> None:
        self.terminate()  # Slurm kills what is not gone after its KillWait

    def _find_code(self) -> int:
        """The exit code of the run of a job that is over; why a job failed is appended to its log."""
        if self._cancelled:
            return -signal.SIGTERM
        try:
            return int(self._job.result())
        except Exception as error:  # the job's own, or submitit's of one that left no result
            reason = _sentence(str(error))
        with contextlib.suppress(OSError), self._log.open("a") as file:
            file.write(f"error: {reason}\n")
        return 1


class TrainRun:
    """What a job does; submitit pickles it, and asks it for a `checkpoint` when the job is to end and go on later."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, task: Task) -> int:
        """Train the run of a task; returns the exit code of its process, -SIGNAL if a signal ended it."""
        with process_of(task) as self._process:
            while (code := self._process.poll()) is None:
                time.sleep(POLL)
        if code in (128 + signal.SIGTERM, -signal.SIGTERM):
            time.sleep(NOTICE)
        return code

    def checkpoint(self, task: Task) -> Any:
        """Let the process save what it has trained and end; the same task goes on with the run."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):  # not wait(): this handler interrupts poll(), and its lock
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(TrainRun(), task)


def _sentence(trace: str) -> str:
    """The sentence of a UserError in a traceback; of any other text its first line."""
    ours = f"{UserError.__module__}.{UserError.__qualname__}: "
    lines = trace.strip().splitlines() or ["it left no reason"]
    return next((line.removeprefix(ours) for line in lines if line.startswith(ours)), lines[0])


def _number(value: str) -> str | int:
    return int(value) if value.isdecimal() else value
