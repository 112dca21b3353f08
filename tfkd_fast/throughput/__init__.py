"""Throughput of this machine in images per second: the engine beside loops written by hand, and the machine's limit."""

from tfkd_fast.throughput.measure import (
    Cell,
    Saving,
    careful_loop,
    flops_per_image,
    matrix_rate,
    measure_evaluation,
    measure_loaders,
    measure_populations,
    measure_saving,
    measure_training,
    sweep,
)
from tfkd_fast.throughput.plain_networks import WRITTEN_OUT
from tfkd_fast.throughput.turns import Measurement, Ratio, measure_interleaved, ratio
from tfkd_fast.throughput.workload import CLASSES, MethodName, Workload

__all__ = [
    "CLASSES",
    "WRITTEN_OUT",
    "Cell",
    "Measurement",
    "MethodName",
    "Ratio",
    "Saving",
    "Workload",
    "careful_loop",
    "flops_per_image",
    "matrix_rate",
    "measure_evaluation",
    "measure_interleaved",
    "measure_loaders",
    "measure_populations",
    "measure_saving",
    "measure_training",
    "ratio",
    "sweep",
]
