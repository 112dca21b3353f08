"""What this machine trains in a second: the engine beside loops written by hand, and the limit."""

from tfkd_fast.throughput.measure import (
    Row,
    Workload,
    flops_per_image,
    loaders,
    matrix_rate,
    population_curve,
    training,
)

__all__ = ["Row", "Workload", "flops_per_image", "loaders", "matrix_rate", "population_curve", "training"]
