"""The page of a run: its headlines, facts, tables and charts, and the file itself."""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from tfkd_fast.errors import UserError, printable
from tfkd_fast.events import Confusion, ProfessorJudged, StudentExamined, TeachersWeighed
from tfkd_fast.files import write_atomically
from tfkd_fast.report.curves import (
    accuracy_chart,
    calibration_chart,
    groups_chart,
    loss_chart,
    pace_chart,
    terms_chart,
)
from tfkd_fast.report.drawing import Chart
from tfkd_fast.report.format import (
    UNKNOWN,
    as_number,
    count_text,
    count_words,
    decimals,
    duration,
    interval_text,
    rank_text,
    standard_error,
    value_text,
)
from tfkd_fast.report.parts import Headline, Table, TableRow, present, render_template
from tfkd_fast.report.run import RunRecord, read_run
from tfkd_fast.report.steering import (
    action_chart,
    candidate_names,
    distance_chart,
    ranking_chart,
    reward_chart,
    target_chart,
)
from tfkd_fast.report.teaching import pathway_chart, teacher_chart
from tfkd_fast.report.testing import (
    MOST_NAMED_CLASSES,
    class_chart,
    confusion_chart,
    hardest_first,
    reliability_chart,
)
from tfkd_fast.report.words import (
    GLOSSARY,
    gain_words,
    measurement_words,
    ranking_words,
    steering_words,
    teacher_word,
    teaching_words,
)
from tfkd_fast.runs.folder import RunFolder


@dataclass(frozen=True)
class Picture:
    """A test image that the student took for another class, as text."""

    source: str
    """The image itself, as a data URI."""
    label: str
    prediction: str
    confidence: str
    """The probability of the prediction, percent."""


Pictures = Mapping[int, Image]
"""Images by their number in the test set."""

NO_PICTURES: Pictures = {}

PAIRS = 10
"""Rows of a table of classes, or of pairs of them."""

THUMBNAIL = 96
"""The longer side of a picture that is larger, in pixels."""


def write_report(run_folder: Path, pictures: Pictures = NO_PICTURES) -> Path:
    """Write the page of a run, finished or not, and return its path.

    It is one file that needs nothing else and no network; the same run folder gives the same bytes.

    Args:
        run_folder: the folder of the run.
        pictures: test images by number, RGB or grey, to show of those that `RunRecord.examination` names.

    Raises:
        UserError: the folder is no run folder, one of its files is damaged, or the page cannot be written.
    """
    folder = RunFolder(run_folder)
    folder.require_run()
    # read in turn with other processes, such as the run at its end: the last page is of the latest state
    write_atomically(folder.report, lambda file: file.write(_render_checked(folder, pictures).encode()))
    return run_folder / folder.report.name


def _render_checked(folder: RunFolder, pictures: Pictures) -> str:
    """The page of a run folder, where events of the log that do not go together are refused as a damaged line is."""
    run = read_run(folder.path)
    try:
        return render(run, pictures)
    except UserError:
        raise
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise UserError(
            f"no page can be made of {folder.metrics}, whose events contradict each other ({printable(str(error))}): "
            "restore it"
        ) from error


def render(run: RunRecord, pictures: Pictures = NO_PICTURES) -> str:
    """The page of a run as HTML; see `write_report`."""
    return render_template(
        "tfkd_fast.report",
        "page.html",
        run=run,
        start=run.start,
        last_epoch=run.epochs[-1].epoch if run.epochs else 0,
        headlines=_test_headlines(run, run.summary) if run.summary else _latest_headlines(run),
        gain_words=gain_words(run),
        facts=_facts(run),
        testing=_testing(run, run.examination) if run.examination else [],
        errors=_errors(run, run.examination) if run.examination else [],
        pictures=_pictures(run, run.examination, pictures) if run.examination else [],
        glossary=GLOSSARY,
        class_count=count_words(len(run.start.classes), "class", "classes"),
        training=present(
            accuracy_chart(run), loss_chart(run), calibration_chart(run), pace_chart(run), terms_chart(run)
        ),
        grades=_grades(run) if run.grades else None,
        groups=present(groups_chart(run)),
        teaching=present(teacher_chart(run), pathway_chart(run)),
        teaching_words=teaching_words(run),
        teachers=_teachers(run.teacher_weights[-1]) if run.teacher_weights else None,
        professors=_professors(run.professors) if run.professors else None,
        steering=present(target_chart(run), distance_chart(run), action_chart(run), reward_chart(run)),
        steering_words=steering_words(run),
        ranking=present(ranking_chart(run)),
        ranking_words=ranking_words(run),
        last_selection=_last_selection(run) if run.selections else None,
        measurement=measurement_words(run),
        values={name: value_text(name, value) for name, value in (run.summary or run.start.model_dump()).items()},
    )


def _test_headlines(run: RunRecord, summary: dict[str, Any]) -> list[Headline]:
    if "test_top1" not in summary:
        return _latest_headlines(run)
    top1, images = as_number(summary.get("test_top1")), summary.get("test_images")
    best_epoch, epochs = summary.get("best_epoch"), summary.get("student_epochs")
    error = f"± {decimals(standard_error(top1, images))} standard error" if images else "after the last epoch"
    best = f"best {decimals(summary.get('best_holdout_top1'))} % at epoch {best_epoch}"
    calibrated = f"{decimals(summary.get('test_calibrated_nll'), 3)} calibrated"
    seconds = duration(as_number(summary.get("seconds")))
    return [
        Headline("Test top-1", decimals(top1), "%", error),
        Headline("Held-out top-1", decimals(summary.get("holdout_top1")), "%", best if best_epoch else "none held out"),
        Headline("Test NLL", decimals(summary.get("test_nll"), 3), "", calibrated),
        Headline("Test ECE", decimals(summary.get("test_ece"), 4), "", "of 0 to 1, in 15 bins"),
        Headline(
            "Images a second", count_text(summary.get("images_per_second")), "", "in training, without evaluation"
        ),
        Headline("Duration", *seconds, f"{count_words(epochs, 'epoch')} over all candidates" if epochs else ""),
    ]


def _latest_headlines(run: RunRecord) -> list[Headline]:
    """Headlines of a run that is not finished, by the latest epoch of the student."""
    if not run.student:
        return [Headline("Time so far", *duration(run.seconds), "no epoch finished yet")]
    latest = run.student[-1]
    after, holdout = f"after epoch {latest.epoch}", latest.holdout
    judged = []
    if holdout:
        judged = [
            Headline("Held-out top-1", decimals(holdout.top1), "%", after),
            Headline("Held-out NLL", decimals(holdout.nll, 3), "", f"{decimals(holdout.calibrated_nll, 3)} calibrated"),
            Headline("Held-out ECE", decimals(holdout.ece, 4), "", "of 0 to 1, in 15 bins"),
        ]
    return [
        *judged,
        Headline("Training top-1", decimals(latest.train_top1), "%", after),
        Headline("Images a second", count_text(latest.images_per_second), "", f"in epoch {latest.epoch}"),
        Headline("Time so far", *duration(run.seconds), f"{latest.epoch} of {run.start.epochs} epochs"),
    ]


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """The facts of the run: method, data, network and machine."""
    start = run.start
    tables = {"Target": ("target", "family"), "Controller": ("controller", "name")}
    classes = count_words(len(start.classes), "class", "classes")
    held_out = f"{start.holdout_images:,} held out" if start.holdout_images else "none held out"
    facts = [
        ("Student", f"{start.model}, {start.parameters:,} parameters"),
        ("Data", f"{start.dataset}: {classes}, {start.train_images:,} to fit, {held_out}"),
        *((term, run.recipe[table].get(key, UNKNOWN)) for term, (table, key) in tables.items() if table in run.recipe),
        *([(teacher_word(run).capitalize(), ", ".join(start.teachers))] if start.teachers else []),
        ("Candidates", f"up to {start.candidates} at a time" if start.candidates > 1 else "one"),
        ("Machine", f"{start.device_name} ({start.device}), {start.precision}"),
        ("Loader and operators", f"{start.loader}, {start.ops}"),
        ("Epochs", str(start.epochs)),
        ("Seeds", f"1 (seed {start.seed})"),
    ]
    if run.summary:
        facts.append(("Epoch rule", run.summary.get("epoch_rule", UNKNOWN)))
    if run.resumes:
        facts.append(("Resumed", "after epoch " + ", ".join(str(resume.epoch) for resume in run.resumes)))
    incomplete = [str(resume.epoch) for resume in run.resumes if resume.log_incomplete]
    lacks = [f"lines from before it was resumed after epoch {', '.join(incomplete)}"] if incomplete else []
    if run.lost_lines:
        lacks.append(f"{count_words(run.lost_lines, 'line')} that it held")
    if run.cut:
        lacks.append("its end")
    if lacks:
        facts.append(("Log", f"lacks {' and '.join(lacks)}"))
    return facts


def _testing(run: RunRecord, test: StudentExamined) -> list[Chart]:
    """The charts of the test."""
    names = run.start.classes
    return present(class_chart(test, names), reliability_chart(test), confusion_chart(test, names))


def _errors(run: RunRecord, test: StudentExamined) -> list[Table]:
    """The hardest classes, where there are too many to chart each, and the most frequent confusions."""
    names, tables = run.start.classes, []
    if len(names) > MOST_NAMED_CLASSES:
        rows = [
            TableRow(names[label], [f"{test.class_images[label]:,}", decimals(test.class_top1[label])])
            for label in hardest_first(test)[:PAIRS]
        ]
        tables.append(Table("The hardest classes", ["Class", "test images", "top-1, %"], rows))
    rows = [
        TableRow(names[pair.label], [names[pair.prediction], f"{pair.images:,}", _share(pair, test)])
        for pair in test.confusions[:PAIRS]
    ]
    if rows:
        tables.append(Table("The most frequent mistakes", ["Class", "taken for", "images", "% of the class"], rows))
    return tables


def _share(pair: Confusion, test: StudentExamined) -> str:
    return decimals(100 * pair.images / test.class_images[pair.label])


def _pictures(run: RunRecord, test: StudentExamined, pictures: Pictures) -> list[Picture]:
    """The surest mistakes, of those whose images are there."""
    names = run.start.classes
    return [
        Picture(
            _source_of(pictures[mistake.image]),
            names[mistake.label],
            names[mistake.prediction],
            decimals(mistake.confidence, 1),
        )
        for mistake in test.mistakes
        if mistake.image in pictures
    ]


def _source_of(image: Image) -> str:
    """The data URI of an image as PNG, made smaller where it is large."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _grades(run: RunRecord) -> Table:
    """The grades so far: their classes and how much of the network took part."""
    known: set[int] = set()
    rows = []
    for grade in run.grades:
        new = [run.start.classes[label] for label in grade.labels if label not in known]
        known.update(grade.labels)
        epochs = interval_text(grade.first_epoch, grade.last_epoch)
        rows.append(TableRow(str(grade.grade), [epochs, str(grade.stages), str(len(grade.labels)), ", ".join(new)]))
    return Table("Grades", ["Grade", "Epochs", "Stages of the network", "Classes", "New among them"], rows)


def _teachers(weights: TeachersWeighed) -> Table:
    """The mean weights of an epoch."""
    rows = [
        TableRow(name, [decimals(of_logits), decimals(of_features)])
        for name, of_logits, of_features in zip(
            weights.names, weights.logit_weights, weights.feature_weights, strict=True
        )
    ]
    heads = ["Teacher", "weight of its predictions", "weight of its features"]
    return Table(f"Mean weights in epoch {weights.epoch}", heads, rows)


def _professors(professors: list[ProfessorJudged]) -> Table:
    """Each professor beside its teacher."""
    rows = []
    for professor in professors:
        gain = professor.professor_top1 - professor.teacher_top1
        cells = [
            decimals(professor.teacher_top1),
            decimals(professor.professor_top1),
            f"{gain:+.2f} ± {decimals(professor.margin)}" if math.isfinite(gain) else UNKNOWN,
            f"{professor.kept_images:,}",
            decimals(professor.spearman, 3),
            f"{professor.images:,}",
            decimals(professor.teacher_error, 1),
        ]
        rows.append(TableRow(professor.teacher, cells))
    heads = [
        "Teacher",
        "its top-1, % ↑",
        "professor's top-1, % ↑",
        "difference, points",
        "judged by images",
        "rank correlation ↑",
        "learned from images",
        "teacher's errors on them, %",
    ]
    return Table("Professors", heads, rows)


def _last_selection(run: RunRecord) -> Table:
    """The candidates of the last selection, best first."""
    selection = run.selections[-1]
    roles = {decision.interval: [candidate.role for candidate in decision.candidates] for decision in run.decisions}
    names = candidate_names(run)
    if selection.interval in roles:
        names = [f"{slot} · {role}" for slot, role in enumerate(roles[selection.interval])]
    if selection.averaged:
        names = [*names[: len(selection.order) - 1], f"average of {', '.join(map(str, selection.averaged))}"]
    rows = []
    for slot in selection.order:
        values_and_ranks = zip(selection.values[slot], selection.ranks[slot], strict=True)
        cells = [f"{decimals(value, 4)}, rank\N{NO-BREAK SPACE}{rank_text(rank)}" for value, rank in values_and_ranks]
        won = slot == selection.winner
        name = f"{names[slot]}, continues" if won else names[slot]
        rows.append(TableRow(name, [*cells, rank_text(selection.scores[slot])], marked=won))
    arrows = ["↑" if higher else "↓" for higher in selection.higher_is_better]
    criteria = [f"{name} {arrow}" for name, arrow in zip(selection.criteria, arrows, strict=True)]
    heads = ["Candidate", *criteria, f"score ({selection.aggregate}) ↓"]
    return Table(f"The last selection, after epoch {selection.epoch}", heads, rows)
