"""The page of a run: what its charts and tables say in words, and the file itself."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tfkd_fast.events import ProfessorJudged
from tfkd_fast.report.curves import accuracy_chart, calibration_chart, groups_chart, loss_chart, pace_chart
from tfkd_fast.report.drawing import DARK, LIGHT, Chart
from tfkd_fast.report.run import RunRecord, read_run
from tfkd_fast.report.steering import (
    action_chart,
    band_name,
    candidate_names,
    ranking_chart,
    reward_chart,
    risen,
    target_chart,
    wins,
)
from tfkd_fast.report.teaching import pathway_chart, pathway_words, teacher_chart
from tfkd_fast.runs.checkpoint import write_atomically
from tfkd_fast.runs.folder import RunFolder

UNKNOWN = "–"


@dataclass(frozen=True)
class Figure:
    """One of the big numbers at the top."""

    label: str
    value: str
    unit: str
    note: str


@dataclass(frozen=True)
class RankingRow:
    """One candidate of the last selection; a cell is a criterion's value and the rank it gave."""

    name: str
    cells: list[tuple[str, str]]
    score: str
    won: bool


@dataclass(frozen=True)
class ProfessorRow:
    """A professor beside its teacher, as text."""

    teacher: str
    verdict: str
    warning: str
    cells: list[str]


@dataclass(frozen=True)
class GradeRow:
    """What was taught in a grade, and how much of the network took part."""

    number: int
    epochs: str
    stages: int
    classes: int
    new: str


def write_report(run_folder: Path) -> Path:
    """Write the page of a run, finished or not, and return its path.

    It is one file that needs nothing else and no network; the same run folder gives the same bytes.

    Raises:
        UserError: the folder is no run folder, one of its files is damaged, or the page cannot be written.
    """
    page = render(read_run(run_folder)).encode()
    path = RunFolder(run_folder).report
    write_atomically(path, lambda file: file.write(page))
    return path


def render(run: RunRecord) -> str:
    """The HTML of a run."""
    environment = Environment(
        loader=PackageLoader("tfkd_fast.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        run=run,
        start=run.start,
        light=LIGHT,
        dark=DARK,
        last_epoch=run.epochs[-1].epoch if run.epochs else 0,
        figures=_test_figures(run, run.summary) if run.summary else _latest_figures(run),
        facts=_facts(run),
        training=_present(accuracy_chart(run), loss_chart(run), calibration_chart(run), pace_chart(run)),
        grades=_grades(run),
        groups=_present(groups_chart(run)),
        teaching=_present(teacher_chart(run), pathway_chart(run)),
        teaching_words=_teaching_words(run),
        professors=[_professor(professor) for professor in run.professors],
        steering=_present(target_chart(run), action_chart(run), reward_chart(run)),
        steering_words=_steering_words(run),
        ranking=_present(ranking_chart(run)),
        ranking_words=_ranking_words(run),
        last_selection=_last_selection(run),
        measurement=_measurement(run),
        values={name: _value(name, value) for name, value in (run.summary or run.start.model_dump()).items()},
    )


def _present(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _test_figures(run: RunRecord, summary: dict[str, Any]) -> list[Figure]:
    top1, images = _number(summary.get("test_top1")), summary.get("test_images")
    best_epoch = summary.get("best_epoch")
    error = f"± {_fixed(_standard_error(top1, images))} standard error" if images else "after the last epoch"
    best = f"best {_fixed(summary.get('best_holdout_top1'))} % at epoch {best_epoch}"
    return [
        Figure("Test top-1", _fixed(top1), "%", error),
        Figure("Held-out top-1", _fixed(summary.get("holdout_top1")), "%", best if best_epoch else "none held out"),
        Figure("Test NLL", _fixed(summary.get("test_nll"), 3), "", _calibrated(summary.get("test_calibrated_nll"))),
        Figure("Test ECE", _fixed(summary.get("test_ece"), 4), "", "of 0 to 1, in 15 bins"),
        Figure("Images a second", _count(summary.get("images_per_second")), "", "in training, without evaluation"),
        Figure("Duration", *_duration(_number(summary.get("seconds"))), _student_epochs(summary)),
    ]


def _latest_figures(run: RunRecord) -> list[Figure]:
    """Of an unfinished run: how the student stands now."""
    if not run.student:
        return [Figure("Time so far", *_duration(run.seconds), "no epoch finished yet")]
    latest = run.student[-1]
    after = f"after epoch {latest.epoch}"
    judged = []
    if latest.holdout:
        judged = [
            Figure("Held-out top-1", _fixed(latest.holdout.top1), "%", after),
            Figure("Held-out NLL", _fixed(latest.holdout.nll, 3), "", _calibrated(latest.holdout.calibrated_nll)),
            Figure("Held-out ECE", _fixed(latest.holdout.ece, 4), "", "of 0 to 1, in 15 bins"),
        ]
    return [
        *judged,
        Figure("Training top-1", _fixed(latest.train_top1), "%", after),
        Figure("Images a second", _count(latest.images_per_second), "", f"in epoch {latest.epoch}"),
        Figure("Time so far", *_duration(run.seconds), f"{latest.epoch} of {run.start.epochs} epochs"),
    ]


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """What was trained, on what and how, for the top of the page."""
    start = run.start
    tables = {"Target": ("target", "family"), "Controller": ("controller", "name")}
    held_out = f", {start.holdout_images:,} held out" if start.holdout_images else ", none held out"
    facts = [
        ("Student", f"{start.model}, {start.parameters:,} parameters"),
        ("Data", f"{start.dataset}: {len(start.classes)} classes, {start.train_images:,} to fit{held_out}"),
        *((term, run.recipe[table].get(key, UNKNOWN)) for term, (table, key) in tables.items() if table in run.recipe),
        *([(_teachers(run).capitalize(), ", ".join(start.teachers))] if start.teachers else []),
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
    return facts


def _teachers(run: RunRecord) -> str:
    return "teachers" if len(run.start.teachers) > 1 else "teacher"


def _grades(run: RunRecord) -> list[GradeRow]:
    """The grades so far."""
    known: set[int] = set()
    rows = []
    for grade in run.grades:
        new = [run.start.classes[label] for label in grade.labels if label not in known]
        known.update(grade.labels)
        epochs = band_name(grade.first_epoch, grade.last_epoch)
        rows.append(GradeRow(grade.grade, epochs, grade.stages, len(grade.labels), ", ".join(new)))
    return rows


def _teaching_words(run: RunRecord) -> str:
    """What the teachers counted for at last."""
    sentences = []
    if run.teacher_weights:
        last = run.teacher_weights[-1]
        shares = [
            " and ".join(f"{_fixed(weight)} for {name}" for name, weight in zip(last.names, weights, strict=True))
            for weights in (last.logit_weights, last.feature_weights)
        ]
        sentences.append(f"Mean weights in epoch {last.epoch}: of predictions {shares[0]}, of features {shares[1]}.")
    if run.pathway_weights:
        epoch = run.pathway_weights[-1]
        sentences.append(f"Pathways at the beginning of epoch {epoch.epoch}: {pathway_words(epoch)}.")
    return " ".join(sentences)


def _professor(professor: ProfessorJudged) -> ProfessorRow:
    gain = professor.professor_top1 - professor.teacher_top1
    difference = f"{gain:+.2f} ± {_fixed(professor.margin)}" if math.isfinite(gain) else UNKNOWN
    cells = [
        _fixed(professor.teacher_top1),
        _fixed(professor.professor_top1),
        difference,
        f"{professor.kept_images:,}",
        _fixed(professor.spearman, 3),
        f"{professor.images:,}",
        _fixed(professor.teacher_error, 1),
    ]
    return ProfessorRow(professor.teacher, professor.verdict, professor.warning, cells)


def _steering_words(run: RunRecord) -> str:
    """What the controller did, in a few sentences."""
    taught = [run.survivor(decision) for decision in run.decided]
    masses = [target.true_mass for target in taught]
    if len(taught) < 2 or not all(math.isfinite(target.true_mass + target.divergence) for target in taught):
        return f"Decisions: {len(taught)}."
    rises = len(risen(run))
    kind = "not progressive" if rises else "progressive, never moving away from the one-hot label again"
    return (
        f"{len(taught)} decisions. The true-class mass went from {masses[0]:.3f} to {masses[-1]:.3f}, within "
        f"{min(masses):.3f} to {max(masses):.3f}. The target moved away from the one-hot label at {rises} of "
        f"{len(taught) - 1} changes: it was {kind}."
    )


def _ranking_words(run: RunRecord) -> str:
    """Who won the selections."""
    if not run.selections:
        return ""
    won = ", ".join(f"{name}: {count}" for name, count in wins(run).items())
    return f"{len(run.selections)} selections. Won by candidate {won}."


def _last_selection(run: RunRecord) -> list[RankingRow]:
    """The candidates of the last selection, best first."""
    if not run.selections:
        return []
    selection = run.selections[-1]
    roles = {decision.interval: [candidate.role for candidate in decision.candidates] for decision in run.decisions}
    names = candidate_names(run)
    if selection.interval in roles:
        names = [f"{slot} · {role}" for slot, role in enumerate(roles[selection.interval])]
    rows = [
        RankingRow(
            name=names[slot],
            cells=[
                (_fixed(value, 4), _rank(rank))
                for value, rank in zip(selection.values[slot], selection.ranks[slot], strict=True)
            ],
            score=_rank(score),
            won=slot == selection.winner,
        )
        for slot, score in enumerate(selection.scores)
    ]
    return [rows[slot] for slot in selection.order]


def _measurement(run: RunRecord) -> list[str]:
    """What a reader has to know before believing the figures."""
    summary, holdout = run.summary or {}, run.start.holdout_images
    lines = []
    if holdout:
        steered = [name for name, events in (("controller", run.rewards), ("selection", run.selections)) if events]
        steered = steered or ["method"] * run.start.steered_by_holdout
        use = f"steered the {' and the '.join(steered)}" if steered else "were only watched: they steered nothing"
        lines.append(f"{holdout:,} images held out of the training set {use}. No student was fitted to them.")
    else:
        lines.append("No images were held out, so nothing was steered or selected.")
    if run.start.teachers:
        lines.append(
            f"The student learned from the {_teachers(run)} as well, whose training is in none of the figures."
        )
    if run.start.teachers_saw_holdout:
        lines.append(
            "A teacher was trained on images that are held out here, so held-out figures look better than they are. "
            "The test set is not concerned."
        )
    if run.start.teachers_saw_holdout is None:
        lines.append(
            "It is not known whether a teacher was trained on images that are held out here: held-out figures may look "
            "better than they are."
        )
    if run.summary is None:
        lines.append("The test set has not been read yet: that happens after the last epoch only.")
        return lines
    images = f" ({summary['test_images']:,} images)" if "test_images" in summary else ""
    lines.append(f"The test set{images} was read after the last epoch only, and steered nothing.")
    lines.append(f"Epoch rule: the figures at the top are of the {summary.get('epoch_rule', 'last')} epoch.")
    if summary.get("best_epoch"):
        lines.append(
            f"The best epoch on the held-out images was {summary['best_epoch']}, with "
            f"{_fixed(summary.get('best_holdout_top1'))} % there and {_fixed(summary.get('best_test_top1'))} % on the "
            "test set. The best of many noisy figures flatters: compare runs by the rule above."
        )
    lines.append(
        "Seeds: 1. The standard error counts the test images only; another seed usually moves the result by more, so "
        "compare methods over several seeds."
    )
    return lines


def _standard_error(top1: float, images: int) -> float:
    """Binomial, in percent points, of an accuracy in percent."""
    return math.sqrt(top1 * (100.0 - top1) / images) if math.isfinite(top1) else math.nan


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _fixed(value: Any, digits: int = 2) -> str:
    number = _number(value)
    return f"{number:.{digits}f}" if math.isfinite(number) else UNKNOWN


def _rank(rank: float) -> str:
    """Ranks of ties are halves, and weighted sums of ranks anything."""
    return f"{rank:g}" if math.isfinite(rank) else UNKNOWN


def _count(value: Any) -> str:
    number = _number(value)
    return f"{number:,.0f}" if math.isfinite(number) else UNKNOWN


def _calibrated(nll: Any) -> str:
    return f"{_fixed(nll, 3)} calibrated"


def _student_epochs(summary: dict[str, Any]) -> str:
    epochs = summary.get("student_epochs")
    return f"{epochs:,} epochs over all candidates" if epochs else ""


def _duration(seconds: float) -> tuple[str, str]:
    """A value and its unit."""
    if not math.isfinite(seconds):
        return UNKNOWN, ""
    if seconds < 90:
        return f"{seconds:.1f}", "s"
    return (f"{seconds / 60:.1f}", "min") if seconds < 5400 else (f"{seconds / 3600:.1f}", "h")


def _value(name: str, value: Any) -> str:
    """A value of the summary as text, with its unit where the name tells it."""
    if value is None:
        return UNKNOWN
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(key, part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_value(name, part) for part in value)
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    unit = " %" if name.endswith(("top1", "top5")) else " s" if name.endswith("seconds") else ""
    return text + unit
