"""One number for a candidate out of its criteria: standardised sum and Pareto front; `ops` has the Borda count."""

import math
import statistics
from collections.abc import Sequence

Row = Sequence[float]


def z_sums(values: Sequence[Row], higher_is_better: Sequence[bool], weights: Sequence[float]) -> tuple[float, ...]:
    """Weighted sums of each candidate's standardised criteria (values N x R), turned so that lower is better.

    Sums count as equal to 9 decimals, as Borda scores do.
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
    """N values, lower is better, less their mean and over their (population) standard deviation.

    Mean and deviation are of the finite values; where these are all equal, each is 0. An infinite value or NaN stands
    one deviation beyond them: minus infinity below the lowest, infinity and NaN above the highest (our choice).
    """
    finite = [value for value in column if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    span = high / 2 - low / 2 or 1.0  # halves: the range of large values may be no number
    shares = [(value / 2 - low / 2) / span for value in finite]
    mean, deviation = statistics.fmean(shares), statistics.pstdev(shares) or 1.0

    def z(value: float) -> float:
        return ((value / 2 - low / 2) / span - mean) / deviation

    return [z(value) if math.isfinite(value) else z(low) - 1 if value < 0 else z(high) + 1 for value in column]


def pareto_fronts(ranks: Sequence[Row]) -> tuple[int, ...]:
    """The front of each candidate, from its ranks (N x R): 1 where no other dominates it, 2 where only those of front 1
    do, and so on (non-dominated sorting: Goldberg, 1989)."""
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
    """Whether no rank of `one` is behind that of `other`, and some rank is before it."""
    pairs = list(zip(one, other, strict=True))
    return all(mine <= its for mine, its in pairs) and any(mine < its for mine, its in pairs)
