"""The page of a search: what was found, the trials over time and against each key, the best ones, what was pruned."""

import os
from pathlib import Path

from markupsafe import Markup

import tfkd_fast
from tfkd_fast.report.format import UNKNOWN, decimals
from tfkd_fast.report.parts import Headline, Table, TableRow, present, render_template
from tfkd_fast.search.charts import course_chart, key_charts, progress_chart
from tfkd_fast.search.folder import SearchFolder
from tfkd_fast.search.plan import Range
from tfkd_fast.search.results import SearchResults, TrialRecord, value_cell
from tfkd_fast.search.words import JUDGE_WORDS, condition_lines, finding_words, judgement_text, short_value

REFRESH = 30
"""Seconds after which a browser reads the page of a search in progress again."""
MOST_ROWS = 20
"""Trials in the table of the best; trials.csv has all of them."""


def render(results: SearchResults, folder: SearchFolder, *, in_progress: bool) -> str:
    """The page of a search as HTML, one file that needs no network; `in_progress` it is read again by itself."""
    best_recipe = results.search.recipe(results.best.values).to_toml() if results.best else ""
    return render_template(
        "tfkd_fast.search",
        "search.html",
        results=results,
        refresh=REFRESH if in_progress else None,
        finding=finding_words(results),
        headlines=_headlines(results),
        facts=_facts(results),
        progress=present(progress_chart(results), course_chart(results)),
        keys=key_charts(results),
        best=_best(results, folder),
        pruned=_pruned(results),
        failed=_failed(results),
        conditions=condition_lines(results),
        best_recipe=best_recipe,
        version=tfkd_fast.__version__,
    )


def _headlines(results: SearchResults) -> list[Headline]:
    best = results.best
    found = []
    if best is not None:
        top1 = Headline("Held-out top-1", decimals(best.top1), "%", f"trial {best.number}")
        nll = Headline("Held-out NLL", decimals(best.nll, 4), "", f"calibrated, trial {best.number}")
        found = [top1, nll] if results.search.settings.judge == "top1" else [nll, top1]
    epochs = sum(trial.epochs for trial in results.trials)
    return [
        *found,
        Headline("Trials", str(results.ended), f"of {results.planned}", f"{results.count('finished')} finished"),
        Headline("Pruned", str(results.count("pruned")), "", "worse than the median"),
        Headline("Failed", str(results.count("failed")), "", "none of them can be the best"),
        Headline("Epochs", f"{epochs:,}", "", "judged, of all trials together"),
    ]


def _facts(results: SearchResults) -> list[tuple[str, str]]:
    base = results.search.base
    return [
        ("Judged by", JUDGE_WORDS[results.search.settings.judge]),
        ("Method", base.method),
        ("Data", base.data.dataset),
        ("Student", base.model.name),
        ("Epochs of a trial", str(base.epochs)),
        ("Seed", str(base.seed)),
        *((item.key, range_words(item)) for item in results.search.ranges),
    ]


def range_words(item: Range) -> str:
    """The values that a key may have."""
    if item.kind == "choices":
        return ", ".join(value_cell(value) for value in item.values)
    low, high = (short_value(value) for value in item.values)
    return f"{low} to {high}{', by its logarithm' if item.kind == 'log' else ''}"


def _best(results: SearchResults, folder: SearchFolder) -> Table | None:
    """The best trials."""
    if not results.best_first:
        return None
    keys = [item.key for item in results.search.ranges]
    rows = []
    for place, trial in enumerate(results.best_first[:MOST_ROWS]):
        values = [short_value(trial.values[key]) for key in keys]
        cells = [decimals(trial.nll, 4), decimals(trial.top1), str(trial.epochs), *values, _link(trial, folder)]
        rows.append(TableRow(str(trial.number), cells, marked=place == 0))
    heads = ["Trial", "held-out NLL", "held-out top-1, %", "epochs", *keys, "run"]
    return Table("The best trials", heads, rows)


def _pruned(results: SearchResults) -> Table | None:
    """The trials that were pruned."""
    pruned = [trial for trial in results.trials if trial.state == "pruned"]
    keys = [item.key for item in results.search.ranges]
    rows = [
        TableRow(
            str(trial.number),
            [
                str(trial.epochs),
                judgement_text(results, trial.judgement) or UNKNOWN,
                *(short_value(trial.values[key]) for key in keys),
            ],
        )
        for trial in pruned
    ]
    heads = ["Trial", "after epoch", JUDGE_WORDS[results.search.settings.judge], *keys]
    return Table("Pruned trials", heads, rows) if rows else None


def _failed(results: SearchResults) -> Table | None:
    """The trials that failed, and why."""
    failed = [trial for trial in results.trials if trial.state == "failed"]
    keys = [item.key for item in results.search.ranges]
    rows = [
        TableRow(str(trial.number), [*(short_value(trial.values[key]) for key in keys), trial.reason])
        for trial in failed
    ]
    return Table("Failed trials", ["Trial", *keys, "reason"], rows) if rows else None


def _link(trial: TrialRecord, folder: SearchFolder) -> str:
    """A link to the page of a trial's run, from the folder of the search."""
    report = folder.trial(trial.number).report
    if not report.exists():
        return UNKNOWN
    return Markup('<a href="{}">report</a>').format(Path(os.path.relpath(report, folder.path)).as_posix())
