"""Aggregation of a candidate's criteria: standardised sum and Pareto front; the Borda count is in `ops`."""

import math
import statistics
from collections.abc import Sequence

Row = Sequence[float]


def z_sums(values: Sequence[Row], higher_is_better: Sequence[bool], weights: Sequence[float]) -> tuple[float, ...]:
    """Return the weighted sum of each candidate's standardised criteria; lower is better.

    Sums are rounded to 9 decimals, so that rounding errors break no tie, as in the Borda count.

    Args:
        values: N rows of R criteria.
        higher_is_better: R directions.
        weights: R non-negative weights.
    """
    columns = [
        z_scores([-value if higher else value for value in column])
        for column, higher in zip(zip(*values, strict=True), higher_is_better, strict=True)
    ]
    return tuple(
        round(math.fsum(weight * z for weight, z in zip(weights, row, strict=True)), 9)
        for row in zip(*columns, strict=True)
    )


def z_scores(column: Row) -> list[float]:
    """Return N values, of which lower is better, less their mean and over their population standard deviation.

    Mean and deviation are those of the finite values; equal values give 0. A value that is not finite is put one
    deviation beyond them: minus infinity below the lowest, infinity and NaN above the highest (our choice).
    """
    finite_values = [value for value in column if math.isfinite(value)] or [0.0]
    low, high = min(finite_values), max(finite_values)
    span = high / 2 - low / 2 or 1.0  # halves: the range of large values may be no number
    shares = [(value / 2 - low / 2) / span for value in finite_values]
    mean, deviation = statistics.fmean(shares), statistics.pstdev(shares) or 1.0

    def z(value: float) -> float:
        return ((value / 2 - low / 2) / span - mean) / deviation

    return [z(value) if math.isfinite(value) else z(low) - 1 if value < 0 else z(high) + 1 for value in column]


def pareto_fronts(ranks: Sequence[Row]) -> tuple[int, ...]:
    """Return the Pareto front of each of N candidates from their R ranks each.

    The front is 1 for a candidate that no other dominates, 2 if only candidates of front 1 dominate it, and so on
    (non-dominated sorting: Goldberg, 1989).
    """
    fronts = [0] * len(ranks)
    front, left = 0, set(range(len(ranks)))
    while left:
        front += 1
        best = {one for one in left if not any(dominates(ranks[other], ranks[one]) for other in left)}
        for one in best:
            fronts[one] = front
        left -= best
    return tuple(fronts)


def dominates(one: Row, other: Row) -> bool:
    """Return whether no rank of `one` is worse than that of `other`, and at least one is better."""
    pairs = list(zip(one, other, strict=True))
    return all(mine <= its for mine, its in pairs) and any(mine < its for mine, its in pairs)
