"""Trackers: other programs that show the curves of runs, all of them by the names of `scalars`."""

from typing import Literal

from tfkd_fast.runs.trackers.mlflow import MLflow
from tfkd_fast.runs.trackers.tensorboard import TensorBoard
from tfkd_fast.runs.trackers.tracker import Tracker
from tfkd_fast.runs.trackers.wandb import WeightsAndBiases

__all__ = ["TRACKERS", "Tracker", "TrackerName"]

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
"""The name of a tracker in a recipe."""

TRACKERS: dict[TrackerName, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
"""The trackers, by their names."""
