"""Runs as tasks of a Ray cluster, one a run; Ray places them, and tries one again whose worker or machine is lost."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tfkd_fast.errors import UserError
from tfkd_fast.study.executors.on_node import make_task, train
from tfkd_fast.study.executors.protocol import CollectedProcess, Processes, RunOrder, RunProcess

RETRIES = 10
"""How often a run is begun again, or gone on with, after its worker was lost (our choice)."""


class RayExecutor:
    """Trains runs as tasks of Ray."""

    def __init__(self, jobs: int, *, address: str, cpus: int, gpus: float) -> None:
        """So many tasks at a time in the cluster at an address, as `ray.init` takes it; each with so many cores, which
        are its threads too, and so many GPUs or a fraction of one."""
        self.jobs, self._address, self._cpus, self._gpus = jobs, address, cpus, gpus

    @contextmanager
    def processes(self, folder: Path, locks: Sequence[int]) -> Iterator[Processes]:
        """See `Executor.processes`."""
        try:
            import ray
        except ImportError:
            raise UserError("executor ray needs Ray: pip install 'tfkd-fast[ray]'") from None
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=self._address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster at {self._address}: start one by `ray start --head`, or give its --address "
                f"({str(error).strip().partition(chr(10))[0]})"
            ) from None
        finally:
            signal.signal(signal.SIGTERM, before)  # Ray takes it for itself
        try:
            self._refuse_too_large(ray.cluster_resources())
            yield RayTasks(self._cpus, self._gpus)
        finally:
            ray.shutdown()

    def _refuse_too_large(self, resources: dict[str, float]) -> None:
        """Raise UserError if the whole cluster has less than one run asks for, which Ray would wait for without end."""
        for name, asked in (("CPU", self._cpus), ("GPU", self._gpus)):
            if asked > (there := resources.get(name, 0)):
                option = f"--{name.lower()}s-per-run"
                raise UserError(f"the Ray cluster has {there:g} {name}s, and a run asks for {asked:g}: lower {option}")


class RayTasks(Processes):
    """Starts tasks, as many as are asked for: Ray lets them wait for room."""

    def __init__(self, cpus: int, gpus: float) -> None:
        import ray

        self._ray, self._cpus = ray, cpus
        self._remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(train)
        self._living: dict[Any, RayTask] = {}

    def start(self, order: RunOrder) -> RunProcess:
        reference = self._remote.options(name=order.folder.name).remote(make_task(order, self._cpus))
        self._living[reference] = task = RayTask(self, reference, order.log)
        return task

    def pause(self, seconds: float) -> None:
        """Wait until a task has ended, at most so long."""
        if not self._living:
            time.sleep(seconds)
            return
        ended, _ = self._ray.wait(list(self._living), timeout=seconds)
        for reference in ended:
            task = self._living.pop(reference)
            task.code = self._code(reference, task.log)

    def end_all(self) -> None:
        for task in list(self._living.values()):
            task.terminate()

    def cancel(self, reference: Any, *, force: bool) -> None:
        """End a task: where it is not forced it ends when its run is saved."""
        with suppress(ValueError):  # Ray refuses to force a task that is cancelled by now
            self._ray.cancel(reference, force=force)

    def _code(self, reference: Any, log: Path) -> int:
        """The exit code of a task that has ended; what Ray says of one that failed is appended to its log."""
        errors = self._ray.exceptions
        try:
            return int(self._ray.get(reference))
        except errors.TaskCancelledError:
            return -signal.SIGTERM
        except errors.RayTaskError as error:
            reason = str(error.cause)
        except errors.RayError as error:
            reason = f"Ray lost it: {' '.join(str(error).split())}"
        with suppress(OSError), log.open("a") as file:
            file.write(f"error: {reason}\n")
        return 1


class RayTask(CollectedProcess):
    """A task that trains a run."""

    def __init__(self, source: RayTasks, reference: Any, log: Path) -> None:
        super().__init__(source)
        self._source, self._reference, self.log = source, reference, log

    def terminate(self) -> None:
        if self.code is None:
            self._source.cancel(self._reference, force=False)

    def kill(self) -> None:
        if self.code is None:
            self._source.cancel(self._reference, force=True)
