"""MLflow: a run there for a run here, at the store that MLFLOW_TRACKING_URI names, by default a file of SQLite."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tfkd_fast.errors import UserError
from tfkd_fast.files import lock_file, user_cache
from tfkd_fast.runs.precedence import dotted_values
from tfkd_fast.runs.trackers.scalars import Point
from tfkd_fast.runs.trackers.tracker import Tracker
from tfkd_fast.strict_json import to_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "tfkd-fast"
"""The experiment that runs are in where MLFLOW_EXPERIMENT_NAME names none."""
PARAMETERS_AT_ONCE = 100
"""Parameters that MLflow takes in one call."""


class MLflow(Tracker):
    """Logs to MLflow, with the values of the recipe as parameters."""

    title, package, extra = "MLflow", "mlflow", "mlflow"

    def begin(self, epoch: int) -> None:
        """Begin a run of MLflow, or go on with the one that the run folder knows. MLflow keeps what it was told of
        epochs after the checkpoint, which then come twice with the same values.

        Raises:
            UserError: the store does not have that run.
        """
        from mlflow import MlflowClient  # slow to import, and an extra

        known = self.folder.tracked_as("mlflow")
        with _exclusive_access():
            self._client = MlflowClient()
            self._run = self._begin_anew() if known is None else self._go_on(known)

    def write(self, points: Sequence[Point]) -> None:
        """Log points, whose steps are epochs."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(point.name, point.value, now, point.epoch) for point in points]
        with _exclusive_access():
            self._client.log_batch(self._run, metrics)

    def end(self, *, finished: bool) -> None:
        """End the run of MLflow, as finished or as killed."""
        with _exclusive_access():
            self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")

    def _go_on(self, run: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(run, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"MLflow has no run {run}, in which {self.folder.path} began: set MLFLOW_TRACKING_URI to the store "
                f"that it is in, or delete {self.folder.trackers} to begin another one"
            ) from None
        return run

    def _begin_anew(self) -> str:
        from mlflow.entities import Param

        name = self.folder.place.resolve().name
        run: str = self._client.create_run(_experiment(self._client), run_name=name).info.run_id
        self.folder.track_as("mlflow", run)
        values = dotted_values(self.recipe).items()
        parameters = [Param(key, value if isinstance(value, str) else to_json(value)) for key, value in values]
        for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
            self._client.log_batch(run, params=parameters[start : start + PARAMETERS_AT_ONCE])
        return run


@contextmanager
def _exclusive_access() -> Iterator[None]:
    """Context manager for a block in which no other run of this user is, if the store is a file: it would fail runs
    that make it at the same time, as those of a study, and may fail several that write."""
    from mlflow import get_tracking_uri

    if not get_tracking_uri().startswith(("sqlite:", "file:")):
        yield
        return
    lock = user_cache() / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        lock_file(file.fileno(), wait=True)
        yield


def _experiment(client: "MlflowClient") -> str:
    """The id of the experiment, which is made where it is missing."""
    from mlflow.exceptions import MlflowException

    if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return number
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except MlflowException:  # another run was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id
