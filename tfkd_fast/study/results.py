"""The table of a study: means over seeds, and differences to the baseline that are paired by seed.

Top-1 is percent, as in the files of a run. A run whose summary has no test top-1, or null there, counts as one that is
missing, and the notes name it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tfkd_fast.study.plan import Study

CONFIDENCE = 0.95
SAME = 1e-9
"""Differences that spread less than this are equal up to rounding, and tell nothing of how differences spread."""

Summary = Mapping[str, Any]
"""A run's summary.json."""

Runs = Mapping[str, Mapping[int, Summary]]
"""Row -> seed -> the finished run."""


def figure(summary: Summary, name: str) -> float | None:
    """A figure of a run; None where the summary does not have it, or has null or NaN."""
    value = summary.get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def top1_by_row(study: Study, runs: Runs) -> dict[str, dict[int, float]]:
    """Row -> seed -> test top-1 of every run that has one."""
    found = {row: {seed: figure(run, "test_top1") for seed, run in runs.get(row, {}).items()} for row in study.rows}
    return {row: {seed: top1 for seed, top1 in own.items() if top1 is not None} for row, own in found.items()}


@dataclass(frozen=True)
class Mean:
    """The mean over seeds, with the sample standard deviation (n - 1) of two or more."""

    mean: float
    sd: float | None


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


def lines(study: Study, runs: Runs) -> list[Line]:
    """A line for every row of the study, in its order."""

    top1 = top1_by_row(study, runs)

    def mean(row: str, name: str) -> Mean | None:
        values = [figure(runs[row][seed], name) for seed in top1[row]]
        known = [value for value in values if value is not None]
        return mean_of(known) if known and len(known) == len(values) else None

    baseline = study.baseline.name
    compared = [row.name for row in study.rows.values() if row.compared and row.name != baseline]
    differences = {row: paired_difference(top1[row], top1[baseline]) for row in compared}
    tested = {row: found.p for row, found in differences.items() if found and found.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [
        Line(
            row=row.name,
            title=row.title,
            seeds=tuple(sorted(top1[row.name])),
            student_epochs=mean(row.name, "student_epochs"),
            test_top1=mean(row.name, "test_top1"),
            difference=differences.get(row.name),
            adjusted_p=adjusted.get(row.name),
            holdout_top1=mean(row.name, "holdout_top1"),
            test_nll=mean(row.name, "test_nll"),
            test_ece=mean(row.name, "test_ece"),
            seconds=mean(row.name, "seconds"),
        )
        for row in study.rows.values()
    ]


def contrasts(study: Study, runs: Runs) -> dict[str, Difference | None]:
    """Test top-1 of rows less that of others: for each seed the mean over the pairs, then as any paired difference.

    A seed counts where all rows of the contrast have it.
    """
    found, top1 = {}, top1_by_row(study, runs)
    for name, pairs in study.contrasts.items():
        seeds = set.intersection(*(set(top1[row]) for pair in pairs for row in pair))
        first, second = (
            {seed: float(np.mean([top1[pair[side]][seed] for pair in pairs])) for seed in seeds} for side in (0, 1)
        )
        found[name] = paired_difference(first, second)
    return found


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and sample standard deviation of one value or more."""
    return Mean(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """The difference of two rows of figures by seed, pair by pair; None where no seed has both."""
    differences = np.array([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])
    if differences.size == 0:
        return None
    mean = float(differences.mean())
    if differences.size < 2 or np.ptp(differences) < SAME:
        return Difference(differences.size, mean)
    from scipy import stats  # takes a second to import

    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    return Difference(differences.size, mean, float(interval.low), float(interval.high), float(test.pvalue))


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


def cells(line: Line, seeds: Sequence[int]) -> tuple[str, ...]:
    """The cells of a line as text, one for each heading."""
    return (
        line.title,
        f"{len(line.seeds)}/{len(seeds)}",
        _mean_and_sd(line.test_top1),
        _difference(line.difference),
        "" if line.adjusted_p is None else f"{line.adjusted_p:.3f}",
        _mean(line.student_epochs, ".0f"),
        _mean(line.holdout_top1, ".2f"),
        _mean(line.test_nll, ".3f"),
        _mean(line.test_ece, ".3f"),
        _mean(line.seconds, ",.0f"),
    )


def contrast_lines(study: Study, runs: Runs) -> list[str]:
    """A sentence for each contrast that is known, which names the seeds that some of its rows lack."""
    sentences, top1 = [], top1_by_row(study, runs)
    for name, found in contrasts(study, runs).items():
        if found is None:
            continue
        pairs = study.contrasts[name]
        rows = dict.fromkeys(row for pair in pairs for row in pair)
        lacking = {
            seed: " and ".join(row for row in rows if seed not in top1[row])
            for seed in sorted({seed for row in rows for seed in top1[row]})
        }
        left_out = "".join(f"; without seed {seed}, which {names} lacks" for seed, names in lacking.items() if names)
        what = ", ".join(f"{first} less {second}" for first, second in pairs)
        sentences.append(f"{name}: {_difference(found)} points over {found.pairs} seeds ({what}){left_out}")
    return sentences


def notes(study: Study, found: Sequence[Line], runs: Runs, seeds: Sequence[int]) -> list[str]:
    """Notes that a reader of the table needs, a sentence or two each."""
    compared = sum(line.difference is not None for line in found)
    tested = sum(line.adjusted_p is not None for line in found)
    machines = {
        f"{summary.get('device_name')}, {summary.get('precision')}" for row in runs.values() for summary in row.values()
    }
    without = [
        f"{row}-seed{seed}"
        for row, by_seed in runs.items()
        for seed, summary in by_seed.items()
        if figure(summary, "test_top1") is None
    ]
    result = [
        f"Seeds: {', '.join(map(str, seeds))}. Mean ± sample standard deviation over the seeds that are done.",
        "Figures of the last epoch; the test set was read once a run, after training.",
        f"Difference: to {study.baseline.title}, paired by seed, with a 95 % confidence interval (Student's t over the "
        "differences; none for fewer than two pairs, or where all are equal).",
        f"Rows compared with the baseline: {compared}; the intervals are not corrected for their number. p is that of "
        f"the two-sided paired t-test, adjusted by Holm's method over the rows that have one: {tested}.",
    ]
    if without:
        result.append(f"Left out, because their summaries have no test top-1: {', '.join(without)}.")
    if machines:
        result.append(
            f"Trained on {'; '.join(sorted(machines))}. Seconds are those of runs beside others at the same time."
        )
    return result


def markdown(study: Study, runs: Runs, seeds: Sequence[int], failures: Mapping[str, str]) -> str:
    """The table as a file; `failures` are the reasons of the runs that failed, by name."""
    found = lines(study, runs)
    rows = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *(cells(line, seeds) for line in found)]
    text = [f"# {study.name}", ""]
    text += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    if sentences := contrast_lines(study, runs):
        text += ["", "Test top-1, mean over the pairs of rows, with a 95 % confidence interval over the seeds:", ""]
        text += [f"- {line}" for line in sentences]
    text += ["", *(f"- {note}" for note in notes(study, found, runs, seeds))]
    text += [f"- Missing: {run}: {reason}" for run, reason in failures.items()]
    return "\n".join(text) + "\n"


def as_json(study: Study, runs: Runs, seeds: Sequence[int], failures: Mapping[str, str]) -> dict[str, Any]:
    """The table, and the figures of every run that it was made of."""
    return {
        "study": study.name,
        "seeds": list(seeds),
        "baseline": study.baseline.name,
        "table": [asdict(line) for line in lines(study, runs)],
        "contrasts": {name: found and asdict(found) for name, found in contrasts(study, runs).items()},
        "runs": [
            {"row": row, "seed": seed, "summary": dict(summary)}
            for row, by_seed in runs.items()
            for seed, summary in by_seed.items()
        ],
        "failures": dict(failures),
    }


def _mean(value: Mean | None, form: str) -> str:
    return "" if value is None else format(value.mean, form)


def _mean_and_sd(value: Mean | None) -> str:
    if value is None or value.sd is None:
        return _mean(value, ".2f")
    return f"{value.mean:.2f} ± {value.sd:.2f}"


def _difference(value: Difference | None) -> str:
    if value is None:
        return ""
    interval = "" if value.low is None or value.high is None else f" [{value.low:+.2f}, {value.high:+.2f}]"
    return f"{value.mean:+.2f}{interval}"
