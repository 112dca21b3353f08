"""The figures of a study: means over seeds, and differences to the baseline that are paired by seed.

Every table, page and file of a study or a comparison is made of `StudyResults`. Top-1 is percent, as in the files of a
run. A run whose summary has no test top-1, or null there, counts as one that is missing, and the notes name it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

CONFIDENCE = 0.95
SAME = 1e-9
"""Figures that spread less than this are equal up to rounding, and tell nothing of how figures spread."""

Summary = Mapping[str, Any]
"""A run's summary.json."""

Runs = Mapping[str, Mapping[int, Summary]]
"""Row -> seed -> the finished run."""

Pairs = tuple[tuple[str, str], ...]
"""Names of rows: the second of each pair is subtracted from the first."""


@dataclass(frozen=True)
class ResultRow:
    """What a table says of a row beside its figures."""

    title: str
    """Its name for readers."""
    compared: bool = True
    """Whether the row is compared with the baseline, and not only there for others to learn from."""
    shared: bool = False
    """Whether one run of it serves all seeds."""


@dataclass(frozen=True)
class Mean:
    """The mean over seeds, with the sample standard deviation (n - 1) of two or more, and the 95 % confidence interval
    (Student's t), which is None where there is one seed, or all figures are equal."""

    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """The mean difference of a row to the baseline, over the seeds that both have.

    Interval (Student's t, 95 %) and p (two-sided paired t-test) are None for fewer than two pairs, or where all
    differences are equal.
    """

    pairs: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Line:
    """One row of the table; None where nothing is known (yet)."""

    row: str
    title: str
    seeds: tuple[int, ...]
    """Seeds of the finished runs that have a test top-1, in ascending order."""
    planned: int
    """Number of runs that it is to have."""
    student_epochs: Mean | None
    test_top1: Mean | None
    difference: Difference | None
    """The difference to the baseline; None for the baseline itself, and for rows that are there for others to learn
    from."""
    adjusted_p: float | None
    """Holm's adjusted p, over the rows that have a p."""
    holdout_top1: Mean | None
    test_nll: Mean | None
    test_ece: Mean | None
    seconds: Mean | None


@dataclass(frozen=True)
class StudyResults:
    """Finished runs in the rows of a table, and what they come to."""

    name: str
    seeds: tuple[int, ...]
    """The seeds that the rows are trained under."""
    baseline: str
    """Name of the row that the others are compared with."""
    rows: Mapping[str, ResultRow]
    """The rows by name, in the order of the table."""
    runs: Runs
    contrasts: Mapping[str, Pairs] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    """Reason of every run that is missing because it failed, by the name of the run."""
    remarks: tuple[str, ...] = ()
    """What else a reader needs to know of these runs, in sentences."""

    @cached_property
    def top1(self) -> dict[str, dict[int, float]]:
        """Row -> seed -> test top-1 of every run that has one."""
        return {row: self.figures(row, "test_top1") for row in self.rows}

    def figures(self, row: str, name: str) -> dict[int, float]:
        """A figure of every run of a row that has it, by seed."""
        found = {seed: figure(run, name) for seed, run in self.runs.get(row, {}).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    @cached_property
    def lines(self) -> list[Line]:
        """A line for every row, in the order of the rows."""
        compared = [name for name, row in self.rows.items() if row.compared and name != self.baseline]
        differences = {row: paired_difference(self.top1[row], self.top1[self.baseline]) for row in compared}
        tested = {row: found.p for row, found in differences.items() if found and found.p is not None}
        adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
        return [
            Line(
                row=name,
                title=row.title,
                seeds=tuple(sorted(self.top1[name])),
                planned=1 if row.shared else len(self.seeds),
                student_epochs=self._mean(name, "student_epochs"),
                test_top1=self._mean(name, "test_top1"),
                difference=differences.get(name),
                adjusted_p=adjusted.get(name),
                holdout_top1=self._mean(name, "holdout_top1"),
                test_nll=self._mean(name, "test_nll"),
                test_ece=self._mean(name, "test_ece"),
                seconds=self._mean(name, "seconds"),
            )
            for name, row in self.rows.items()
        ]

    def _mean(self, row: str, name: str) -> Mean | None:
        """The mean of a figure over the runs with a test top-1; None unless all of them have it."""
        values = [figure(self.runs[row][seed], name) for seed in self.top1[row]]
        known = [value for value in values if value is not None]
        return mean_of(known) if known and len(known) == len(values) else None

    @property
    def best(self) -> Line | None:
        """The line with the highest difference to the baseline, or that of the baseline if none is positive; the one
        with the highest mean while the baseline has no run; None while no row that is compared has one."""
        known = [line for line in self.lines if line.test_top1 and self.rows[line.row].compared]
        by_row = {line.row: line for line in known}
        if self.baseline not in by_row:
            return max(known, key=lambda line: line.test_top1.mean if line.test_top1 else -math.inf, default=None)
        above = [line for line in known if line.difference and line.difference.mean > 0]
        return max(
            above, key=lambda line: line.difference.mean if line.difference else 0.0, default=by_row[self.baseline]
        )

    @cached_property
    def contrast_differences(self) -> dict[str, Difference | None]:
        """Test top-1 of rows less that of others: for each seed the mean over the pairs, then as any paired difference.

        A seed counts where all rows of the contrast have it.
        """
        found = {}
        for name, pairs in self.contrasts.items():
            seeds = set.intersection(*(set(self.top1[row]) for pair in pairs for row in pair))
            first, second = (
                {seed: float(np.mean([self.top1[pair[side]][seed] for pair in pairs])) for seed in seeds}
                for side in (0, 1)
            )
            found[name] = paired_difference(first, second)
        return found


def figure(summary: Summary, name: str) -> float | None:
    """A figure of a run; None where the summary does not have it, or has null or NaN."""
    value = summary.get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def mean_of(values: Sequence[float]) -> Mean:
    """Mean, sample standard deviation and interval of one value or more."""
    if len(values) < 2:
        return Mean(float(np.mean(values)))
    low, high, _ = _student(np.array(values))
    return Mean(float(np.mean(values)), float(np.std(values, ddof=1)), low, high)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """The difference of two rows of figures by seed, pair by pair; None where no seed has both."""
    differences = np.array([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])
    if differences.size == 0:
        return None
    return Difference(differences.size, float(differences.mean()), *_student(differences))


def _student(values: "np.ndarray[Any, Any]") -> tuple[float | None, float | None, float | None]:
    """The ends of the confidence interval of the mean by Student's t, and the two-sided p of a mean of zero."""
    if values.size < 2 or np.ptp(values) < SAME:
        return None, None, None
    from scipy import stats  # takes a second to import

    test = stats.ttest_1samp(values, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high), float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics, 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


# Text for readers.

HEADINGS = (
    "row",
    "seeds",
    "test top-1, %",
    "difference [95 %]",
    "p, Holm",
    "student-epochs",
    "held-out top-1, %",
    "test NLL",
    "test ECE",
    "seconds",
)


def cells(line: Line) -> tuple[str, ...]:
    """The cells of a line as text, one for each heading."""
    return (
        line.title,
        f"{len(line.seeds)}/{line.planned}",
        _mean_and_sd(line.test_top1),
        difference_text(line.difference),
        "" if line.adjusted_p is None else f"{line.adjusted_p:.3f}",
        _mean(line.student_epochs, ".0f"),
        _mean(line.holdout_top1, ".2f"),
        _mean(line.test_nll, ".3f"),
        _mean(line.test_ece, ".3f"),
        _mean(line.seconds, ",.0f"),
    )


def contrast_lines(results: StudyResults) -> list[str]:
    """A sentence for each contrast that is known, which names the seeds that some of its rows lack."""
    sentences, top1 = [], results.top1
    for name, found in results.contrast_differences.items():
        if found is None:
            continue
        pairs = results.contrasts[name]
        rows = dict.fromkeys(row for pair in pairs for row in pair)
        lacking = {
            seed: " and ".join(row for row in rows if seed not in top1[row])
            for seed in sorted({seed for row in rows for seed in top1[row]})
        }
        left_out = "".join(f"; without seed {seed}, which {names} lacks" for seed, names in lacking.items() if names)
        what = ", ".join(f"{first} less {second}" for first, second in pairs)
        sentences.append(f"{name}: {difference_text(found)} points over {found.pairs} seeds ({what}){left_out}")
    return sentences


def notes(results: StudyResults) -> list[str]:
    """Notes that a reader of the table needs, a sentence or two each."""
    compared = sum(line.difference is not None for line in results.lines)
    tested = sum(line.adjusted_p is not None for line in results.lines)
    summaries = [summary for by_seed in results.runs.values() for summary in by_seed.values()]
    machines = {f"{summary.get('device_name')}, {summary.get('precision')}" for summary in summaries}
    without = [
        f"{row}-seed{seed}"
        for row, by_seed in results.runs.items()
        for seed, summary in by_seed.items()
        if figure(summary, "test_top1") is None
    ]
    found = [
        f"Seeds: {', '.join(map(str, results.seeds))}. Mean ± sample standard deviation over the seeds that are done.",
        "Figures of the last epoch; the test set was read once a run, after training.",
        f"Difference: to {results.rows[results.baseline].title}, paired by seed, with a 95 % confidence interval "
        "(Student's t over the differences; none for fewer than two pairs, or where all are equal).",
        f"Rows compared with the baseline: {compared}; the intervals are not corrected for their number. p is that of "
        f"the two-sided paired t-test, adjusted by Holm's method over the rows that have one: {tested}.",
    ]
    if without:
        found.append(f"Left out, because their summaries have no test top-1: {', '.join(without)}.")
    if others := _rows_with_another_holdout(results):
        found.append(
            f"Other images than the baseline's are held out in: {', '.join(others)}; only test figures compare there."
        )
    if machines:
        found.append(
            f"Trained on {'; '.join(sorted(machines))}. Seconds are those of runs beside others at the same time."
        )
    return [*found, *results.remarks]


def _rows_with_another_holdout(results: StudyResults) -> list[str]:
    """Titles of compared rows that held out another number of images than the baseline, if they held out any."""

    def counts(row: str) -> set[float]:
        return {count for count in results.figures(row, "holdout_images").values() if count}

    baseline = counts(results.baseline)
    return [
        row.title
        for name, row in results.rows.items()
        if row.compared and (own := counts(name)) and own != baseline and results.runs.get(results.baseline)
    ]


def missing_lines(results: StudyResults) -> list[str]:
    """A line for every run that is missing because it failed."""
    return [f"missing: {run}: {reason}" for run, reason in results.failures.items()]


def difference_text(value: Difference | None) -> str:
    """A difference in points with its interval, as "+1.20 [+0.30, +2.10]"; empty where there is none."""
    if value is None:
        return ""
    interval = "" if value.low is None or value.high is None else f" [{value.low:+.2f}, {value.high:+.2f}]"
    return f"{value.mean:+.2f}{interval}"


def _mean(value: Mean | None, form: str) -> str:
    return "" if value is None else format(value.mean, form)


def _mean_and_sd(value: Mean | None) -> str:
    if value is None or value.sd is None:
        return _mean(value, ".2f")
    return f"{value.mean:.2f} ± {value.sd:.2f}"
