"""Training throughput of this machine: the engine beside loops written by hand, loaders, and the machine's limit."""

from tfkd_fast.throughput.measure import (
    Measurement,
    Workload,
    flops_per_image,
    matrix_rate,
    measure_loaders,
    measure_populations,
    measure_training,
)

__all__ = [
    "Measurement",
    "Workload",
    "flops_per_image",
    "matrix_rate",
    "measure_loaders",
    "measure_populations",
    "measure_training",
]
