"""From timings to the rows of a table, and the comparison of rows with those of an earlier run."""

from typing import Any, NamedTuple

import torch

from benchmarks.harness import CLONE, COMPILED, COPY, EAGER, Case, Timing, is_ours, measured, short

# A ratio within one run is steadier than a time, but not exact. In four runs of one program on two cores of a virtual
# machine the lowest of 68 ratios was 0.94 of its highest at the median, and 0.73 at the worst.
LEAST_SHARE_OF_STORED_RATIO = 0.65


class Row(NamedTuple):
    """One variant of one case."""

    operator: str
    shape: str
    dtype: str
    variant: str
    microseconds: float
    """Of a call, the median."""
    spread: float
    """Half the distance of the quartiles, as a share of the median."""
    bytes_moved: int
    gigabytes_per_second: float
    """At which the bytes that must move did."""
    copy_gigabytes_per_second: float
    """At which a copy of as many bytes into memory in use did."""
    clone_gigabytes_per_second: float
    """At which a copy of as many bytes into new memory did."""
    launches: int | None
    """On a GPU."""
    ratios: dict[str, float]
    """Rival -> how many times as long it takes. Empty for a rival."""

    @property
    def key(self) -> str:
        return f"{self.operator} {self.shape} {self.dtype} {self.variant}"

    @property
    def share_of_copy(self) -> float:
        """Of the rate of a copy."""
        return self.gigabytes_per_second / self.copy_gigabytes_per_second


def rows_of(case: Case, device: torch.device, seconds: float, compiled: bool = True) -> list[Row]:
    """Measure a case: a row a variant."""
    return make_rows(case, measured(case, device, seconds, compiled))


def make_rows(case: Case, timings: dict[str, Timing]) -> list[Row]:
    """The rows of a case, from its timings and those of copies."""
    rates = {name: case.bytes_moved / timing.median / 1e9 for name, timing in timings.items()}
    rivals = {name: timing for name, timing in timings.items() if not is_ours(name) and name not in (COPY, CLONE)}
    return [
        Row(
            operator=case.operator,
            shape=case.shape,
            dtype=short(case.dtype),
            variant=name,
            microseconds=timing.median * 1e6,
            spread=timing.spread,
            bytes_moved=case.bytes_moved,
            gigabytes_per_second=rates[name],
            copy_gigabytes_per_second=rates[COPY],
            clone_gigabytes_per_second=rates[CLONE],
            launches=timing.launches,
            ratios={rival: t.median / timing.median for rival, t in rivals.items()} if is_ours(name) else {},
        )
        for name, timing in timings.items()
        if name not in (COPY, CLONE)
    ]


def regressions(rows: list[Row], stored: list[Row]) -> list[str]:
    """A sentence for each ratio to eager PyTorch or torch.compile that is clearly below the stored one."""
    before = {row.key: row for row in stored}
    found = []
    for row in rows:
        for rival in (EAGER, COMPILED):
            old = before[row.key].ratios.get(rival) if row.key in before else None
            new = row.ratios.get(rival)
            if old is not None and new is not None and new < LEAST_SHARE_OF_STORED_RATIO * old:
                found.append(
                    f"{row.key}: {new:.2f} times as fast as {rival}, and {old:.2f} times in the stored results"
                )
    return found


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    return [row._asdict() for row in rows]


def from_json(rows: list[dict[str, Any]]) -> list[Row]:
    return [Row(**row) for row in rows]
