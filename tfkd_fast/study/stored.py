"""The results of a study or a comparison as files of the same figures: table.md, table.csv, runs.csv, results.json."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict

from tfkd_fast.errors import UserError, printable
from tfkd_fast.files import read_checked_json, reading, to_checked_json, write_bytes
from tfkd_fast.study.results import (
    HEADINGS,
    Line,
    Pairs,
    ResultRow,
    StudyResults,
    cells,
    contrast_lines,
    missing_lines,
    notes,
)

REMEDY = "give the command of the study again, which writes it anew, or restore it"


class ResultsFiles:
    """The files of results in a folder: their names, writing, reading."""

    def __init__(self, folder: Path) -> None:
        self.table = folder / "table.md"
        self.table_csv = folder / "table.csv"
        self.runs_csv = folder / "runs.csv"
        self.results = folder / "results.json"
        self.page = folder / "study.html"

    @property
    def names(self) -> set[str]:
        """The names of all of them."""
        return {path.name for path in vars(self).values()}

    def write(self, results: StudyResults) -> None:
        """Write all but the page.

        Raises:
            UserError: a file cannot be written.
        """
        write_bytes(self.table, markdown(results).encode())
        write_bytes(self.table_csv, table_csv(results).encode())
        write_bytes(self.runs_csv, runs_csv(results).encode())
        write_bytes(self.results, to_checked_json(as_json(results)).encode())


def markdown(results: StudyResults) -> str:
    """The table as a file for readers."""
    lines = (cells(line) for line in results.lines)
    rows = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *lines]
    text = [f"# {results.name}", ""]
    text += ["| " + " | ".join(printable(cell).replace("|", r"\|") for cell in row) + " |" for row in rows]
    if sentences := contrast_lines(results):
        text += ["", "Test top-1, mean over the pairs of rows, with a 95 % confidence interval over the seeds:", ""]
        text += [f"- {line}" for line in sentences]
    text += ["", *(f"- {note}" for note in notes(results))]
    text += [f"- M{line[1:]}" for line in missing_lines(results)]
    return "\n".join(text) + "\n"


def table_csv(results: StudyResults) -> str:
    """A line for every row of the table: means as NAME_mean, NAME_sd, NAME_low and NAME_high, empty where unknown."""
    return _csv(_flat(line) | {"seeds": " ".join(map(str, line.seeds))} for line in results.lines)


def runs_csv(results: StudyResults) -> str:
    """A line for every finished run: row, seed, and the plain figures of its summary, whose `seed` is `run_seed`."""
    plain = int | float | str
    return _csv(
        {"row": row, "title": results.rows[row].title, "seed": seed}
        | {
            "run_seed" if name == "seed" else name: value
            for name, value in summary.items()
            if isinstance(value, plain) or value is None
        }
        for row, by_seed in results.runs.items()
        for seed, summary in by_seed.items()
    )


def _flat(line: Line) -> dict[str, Any]:
    """The figures of a line by name, and the parts of means and differences by NAME_PART, whether known or not."""
    kinds = {name: next(filter(is_dataclass, get_args(hint)), None) for name, hint in get_type_hints(Line).items()}
    flat: dict[str, Any] = {}
    for name, kind in kinds.items():
        value = getattr(line, name)
        if kind is None:
            flat[name] = value
        else:
            flat |= {f"{name}_{part.name}": getattr(value, part.name, None) for part in fields(kind)}
    return flat


def _csv(records: Iterable[Mapping[str, Any]]) -> str:
    """Records as CSV with a column for every name that one of them has."""
    listed = list(records)
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(name for record in listed for name in record)), restval="", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(listed)
    return text.getvalue()


def as_json(results: StudyResults) -> dict[str, Any]:
    """The table, and the figures of every run that it was made of."""
    return {
        "study": results.name,
        "seeds": list(results.seeds),
        "baseline": results.baseline,
        "rows": {name: asdict(row) for name, row in results.rows.items()},
        "pairs": {name: [list(pair) for pair in pairs] for name, pairs in results.contrasts.items()},
        "table": [asdict(line) for line in results.lines],
        "contrasts": {name: found and asdict(found) for name, found in results.contrast_differences.items()},
        "runs": [
            {"row": row, "seed": seed, "summary": dict(summary)}
            for row, by_seed in results.runs.items()
            for seed, summary in by_seed.items()
        ],
        "failures": dict(results.failures),
        "remarks": list(results.remarks),
    }


class _StoredLine(BaseModel):
    row: str
    title: str
    difference: dict[str, Any] | None = None


class _StoredRun(BaseModel):
    row: str
    seed: int
    summary: dict[str, Any]


class _StoredResults(BaseModel):
    """The file results.json, of which the table is worked out anew."""

    model_config = ConfigDict(extra="ignore")

    study: str
    seeds: tuple[int, ...]
    baseline: str
    rows: dict[str, ResultRow] | None = None
    pairs: dict[str, Pairs] = {}
    table: list[_StoredLine]
    contrasts: dict[str, Any] = {}
    runs: list[_StoredRun]
    failures: dict[str, str] = {}
    remarks: tuple[str, ...] = ()


def read_results(path: Path) -> StudyResults:
    """The results in a results.json; their figures are worked out anew from the runs that it holds.

    A file of an earlier version does not say which rows its contrasts are of: they are left out, and a remark says so.

    Raises:
        UserError: the file is missing, damaged, or holds no results of a study.
    """
    values = read_checked_json(path, "the file of results", REMEDY)
    with reading(path, "the file of results", REMEDY):
        stored = _StoredResults.model_validate(values)
    rows = stored.rows or {
        line.row: ResultRow(line.title, line.difference is not None or line.row == stored.baseline)
        for line in stored.table
    }
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for run in stored.runs:
        runs.setdefault(run.row, {})[run.seed] = run.summary
    named = {*runs, stored.baseline, *(row for pairs in stored.pairs.values() for pair in pairs for row in pair)}
    if unknown := named - rows.keys():
        raise UserError(f"the file of results {path} names the row {min(unknown)!r}, not in its table: {REMEDY}")
    remarks = stored.remarks
    if left := stored.contrasts.keys() - stored.pairs.keys():
        names = ", ".join(sorted(left))
        remarks += (f"Left out, because the file is of an earlier version and does not name their rows: {names}.",)
    ordered = {row: dict(sorted(runs[row].items())) for row in rows if row in runs}
    return StudyResults(
        stored.study, stored.seeds, stored.baseline, rows, ordered, stored.pairs, stored.failures, remarks
    )
