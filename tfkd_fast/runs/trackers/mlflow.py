"""MLflow: a run there for a run here, at the store that MLFLOW_TRACKING_URI names, by default a file of SQLite."""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tfkd_fast.errors import UserError
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
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient()
        known = self.folder.tracked_as("mlflow")
        if known is not None:
            self._run = known
            try:
                self._client.update_run(known, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise UserError(
                    f"MLflow has no run {known}, in which {self.folder.path} began: set MLFLOW_TRACKING_URI to the "
                    f"store that it is in, or delete {self.folder.trackers} to begin another one"
                ) from None
            return
        name = self.folder.path.resolve().name
        self._run = self._client.create_run(_experiment(self._client), run_name=name).info.run_id
        self.folder.track_as("mlflow", self._run)
        parameters = [Param(key, value) for key, value in _flat(self.recipe).items()]
        for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
            self._client.log_batch(self._run, params=parameters[start : start + PARAMETERS_AT_ONCE])

    def write(self, points: Sequence[Point]) -> None:
        """Log points, whose steps are epochs."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._run, [Metric(point.name, point.value, now, point.epoch) for point in points])

    def end(self, *, finished: bool) -> None:
        """End the run of MLflow, as finished or as killed."""
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


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


def _flat(table: dict[str, Any], above: str = "") -> dict[str, str]:
    """The values of nested tables as text, by their keys with points between, as in "data.batch_size"."""
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[above + key] = value if isinstance(value, str) else to_json(value)
    return flat
