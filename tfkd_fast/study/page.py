"""The page of a study or a comparison: what was found, charts, the table, and links to the runs."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from tfkd_fast.files import write_bytes
from tfkd_fast.report.format import UNKNOWN, count_text, count_words, decimals, duration
from tfkd_fast.report.parts import Headline, Table, TableRow, present, render_template
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.study.charts import (
    best_first,
    calibration_chart,
    contrast_chart,
    course_chart,
    difference_chart,
    pareto_chart,
    target_charts,
    top1_chart,
    true_mass_chart,
)
from tfkd_fast.study.courses import Course, Courses, CoursesByRow
from tfkd_fast.study.results import HEADINGS, StudyResults, cells, contrast_lines, figure, missing_lines, notes
from tfkd_fast.study.words import finding_words

REFRESH = 30
"""Seconds after which a browser reads the page of a study in progress again."""

RunFolders = Mapping[tuple[str, int], RunFolder]
"""Row and seed -> the folder of the run, which may not be there yet."""


class ResultsPage:
    """The page of a table of runs, which may be written again and again while they train."""

    def __init__(self, path: Path, folders: RunFolders) -> None:
        """The page in the file `path`, of the runs in `folders`; without folders it has what results alone tell."""
        self._path, self._folders, self._courses = path, folders, Courses()

    def write(self, results: StudyResults, *, in_progress: bool = False) -> Path:
        """Write the page and return its path; a browser reads it again by itself where it is `in_progress`.

        It is one file that needs nothing else and no network. Of runs whose logs are damaged it has no curves, and
        says so.

        Raises:
            UserError: the page cannot be written.
        """
        write_bytes(self._path, self._render(results, in_progress).encode())
        return self._path

    def _render(self, results: StudyResults, in_progress: bool) -> str:
        found = {key: self._courses.read(folder) for key, folder in self._folders.items()}
        by_row: CoursesByRow = {
            row: {seed: course for (name, seed), course in found.items() if name == row and course is not None}
            for row in results.rows
        }
        left_out = [f"No curves of {path.name}: {fault}" for path, fault in sorted(self._courses.unreadable.items())]
        lines = {line.row: line for line in results.lines}
        finished = sum(map(len, results.runs.values()))
        planned = len(self._folders) or finished + len(results.failures)
        return render_template(
            "tfkd_fast.study",
            "study.html",
            results=results,
            finding=finding_words(results),
            refresh=REFRESH if in_progress else None,
            planned=planned,
            finished=finished,
            headlines=_headlines(results, finished, planned),
            facts=_facts(results),
            comparison=present(top1_chart(results), difference_chart(results), contrast_chart(results)),
            contrasts=contrast_lines(results),
            cost=present(
                pareto_chart(results, "student_epochs", "Student-epochs and accuracy", "student-epochs a run"),
                pareto_chart(results, "seconds", "Seconds and accuracy", "seconds a run"),
            ),
            curves=present(
                course_chart(results, by_row, "holdout_top1", "Held-out accuracy", "held-out top-1, %", log=False),
                course_chart(results, by_row, "holdout_nll", "Held-out NLL", "nats", log=True),
            ),
            targets=[*present(true_mass_chart(results, by_row)), *target_charts(results, by_row)],
            calibration=present(calibration_chart(results)),
            table=Table(
                "All rows",
                HEADINGS,
                [
                    TableRow(name, [cell or UNKNOWN for cell in row], marked=line.row == results.baseline)
                    for line in lines.values()
                    for name, *row in [cells(line)]
                ],
            ),
            runs=self._runs(results, by_row),
            notes=[*notes(results), *missing_lines(results), *left_out],
        )

    def _runs(self, results: StudyResults, courses: CoursesByRow) -> Table:
        """Every run with its state, as a link to its page where there is one."""
        rows = []
        for line in best_first(results):
            states = []
            for seed in results.seeds:
                folder = self._folders.get((line.row, seed))
                text = _state(results, line.row, seed, courses.get(line.row, {}).get(seed))
                if folder is None and seed not in results.runs.get(line.row, {}):
                    text = UNKNOWN
                states.append(self._link(folder.report, text) if folder and folder.report.exists() else text)
            rows.append(TableRow(line.title, states))
        return Table("Test top-1 of every run", ["row", *(f"seed {seed}" for seed in results.seeds)], rows)

    def _link(self, target: Path, text: str) -> Markup:
        """A link that is right as long as the page and its target stay where they are to each other."""
        try:
            address = quote(Path(os.path.relpath(target.resolve(), self._path.parent.resolve())).as_posix())
        except ValueError:  # on another drive
            address = target.resolve().as_uri()
        return Markup('<a href="{}">{}</a>').format(address, text)


def _headlines(results: StudyResults, finished: int, planned: int) -> list[Headline]:
    found = [Headline("Runs finished", str(finished), f"of {planned}", count_words(len(results.rows), "row"))]
    best, baseline = results.best, next(line for line in results.lines if line.row == results.baseline)
    judged = []
    if best is not None and best.test_top1:
        judged.append(Headline("Test top-1 of the best row", decimals(best.test_top1.mean), "%", best.title))
        if baseline.test_top1 and best is not baseline:
            judged.append(Headline("Baseline", decimals(baseline.test_top1.mean), "%", baseline.title))
        if difference := best.difference:
            note = "one pair of runs" if difference.pairs == 1 else "the same under all seeds"
            if difference.low is not None and difference.high is not None:
                note = f"{difference.low:+.2f} to {difference.high:+.2f} (95 %)"
            judged.append(Headline("Difference", f"{difference.mean:+.2f}", "points", note))
    found = [*judged, *found]
    for name, label in (("student_epochs", "Student-epochs"), ("seconds", "Time")):
        values = [value for row in results.rows for value in results.figures(row, name).values()]
        if values and name == "seconds":
            found.append(Headline(label, *duration(sum(values)), "summed over the runs"))
        elif values:
            found.append(Headline(label, count_text(sum(values)), "", "summed over the runs"))
    return found


def _facts(results: StudyResults) -> list[tuple[str, str]]:
    """What the runs have in common, or what there is among them."""
    summaries = [summary for by_seed in results.runs.values() for summary in by_seed.values()]

    def listed(name: str) -> str:
        values = dict.fromkeys(str(summary[name]) for summary in summaries if summary.get(name) not in (None, ""))
        return ", ".join(values) or UNKNOWN

    def counted(name: str) -> str:
        values = sorted({value for summary in summaries if (value := figure(summary, name)) is not None})
        if not values:
            return UNKNOWN
        return f"{values[0]:,.0f}" if len(values) == 1 else f"{values[0]:,.0f} to {values[-1]:,.0f}"

    return [
        ("Baseline", results.rows[results.baseline].title),
        ("Seeds", ", ".join(map(str, results.seeds))),
        ("Data", f"{listed('dataset')}: {counted('train_images')} images to fit, {counted('test_images')} to test"),
        ("Student", f"{listed('model')}, {counted('parameters')} parameters"),
        ("Epochs", counted("epochs")),
        ("Machine", f"{listed('device_name')}, {listed('precision')}"),
        ("Version", f"tfkd-fast {listed('version')}, torch {listed('torch')}"),
    ]


def _state(results: StudyResults, row: str, seed: int, course: Course | None) -> str:
    """The state of a run: its test top-1, or how far it is, or why it is missing."""
    summary = results.runs.get(row, {}).get(seed)
    if summary is not None:
        top1 = figure(summary, "test_top1")
        return "no test top-1" if top1 is None else f"{top1:.2f} %"
    if f"{row}-seed{seed}" in results.failures:
        return "failed"
    if course is None:
        return "not begun"
    if course.end:
        return "diverged"
    return f"epoch {course.epochs[-1] if course.epochs else 0} of {course.planned}"
