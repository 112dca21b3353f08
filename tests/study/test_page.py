"""The page of a study or a comparison: whole, with what its runs have, and with the figures of the table."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.study.made_up import ROWS, results_of, runs, summary
from tests.support.pages import Page
from tests.support.run_folders import MakeRun
from tfkd_fast.report import write_report
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.study import runner
from tfkd_fast.study.charts import MOST_LINES, best_first, limits_with_the_best, pareto_front, top1_chart
from tfkd_fast.study.compare import load_comparison
from tfkd_fast.study.page import REFRESH, ResultsPage
from tfkd_fast.study.results import ResultRow, StudyResults, cells
from tfkd_fast.study.stored import read_results

STORED = Path(__file__).parents[2] / "docs" / "results" / "compare-small.json"


def page_of(results: StudyResults, path: Path, folders: dict[tuple[str, int], RunFolder] | None = None) -> Page:
    return Page(ResultsPage(path / "study.html", folders or {}).write(results).read_text())


def test_the_page_has_every_part_needs_nothing_else_and_leads_to_the_runs(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [
        make_run(method, name=f"{method}-seed{seed}", seed=seed)
        for method in ("ce", "tfkd", "tfkd-mrs")
        for seed in (0, 1)
    ]
    write_report(paths[0])
    (paths[-1] / "summary.json").unlink()
    (paths[-1] / "metrics.jsonl").write_text("{damaged}\n" * 3)
    unfinished = make_run("tfkd", name="tfkd-seed2", seed=2, trained=11)
    found = load_comparison([*paths, unfinished])
    ordered = [line.row for line in best_first(found.results) if line.row != "ce"]
    out = tmp_path / "elsewhere"
    out.mkdir()
    page = page_of(found.results, out, dict(found.folders))
    assert page.titles == [
        *("Rows beside each other", "Test top-1", "Difference to ce"),
        *("Cost and accuracy", "Student-epochs and accuracy", "Seconds and accuracy"),
        *("Courses", "Held-out accuracy", "Held-out NLL"),
        *("Targets over time", "Target over time", *(f"{row}, seed 0" for row in ordered)),
        *("Calibration", "Calibration on the test set", "Table", "Runs", "How it was measured"),
    ]
    assert page.tags["svg"] == page.tags["figure"] == 10
    assert page.tags["script"] == page.tags["link"] == 0
    assert all(float(box.split()[2]) < 350 for box in page.boxes)
    assert len(page.ids) == len(set(page.ids))
    links = [target for target in page.targets if not target.startswith(("#", "data:image/png;base64,"))]
    assert [(out / link).resolve() for link in links] == [paths[0] / "report.html"]
    for line in found.results.lines:
        assert all(cell in page.words for cell in cells(line))
    assert "5 of 7 runs are finished" in page.words
    assert "epoch 11 of 20" in page.words
    assert "No curves of tfkd-mrs-seed1: line 1 of " in page.words
    assert "refresh" not in page.text


def test_a_page_in_progress_is_read_again(tmp_path: Path) -> None:
    folders = {(row, seed): RunFolder(tmp_path / f"{row}-seed{seed}") for row in ROWS for seed in (0, 1, 2)}
    writer = ResultsPage(tmp_path / "study.html", folders)
    page = Page(writer.write(results_of({}, failures={"a-seed0": "it diverged"}), in_progress=True).read_text())
    assert f'<meta http-equiv="refresh" content="{REFRESH}">' in page.text
    assert "0 of 9 runs are finished" in page.words
    assert "Nothing is known yet" in page.words
    assert page.tags["svg"] == 0
    assert "missing: a-seed0: it diverged" in page.words
    page = Page(writer.write(results_of(runs(ce={0: 10.0}))).read_text())
    assert "refresh" not in page.text
    assert "1 of 9 runs are finished" in page.words


def test_pages_take_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: clock.now))
    due: list[float] = []  # each page takes a second longer than the one before
    monkeypatch.setattr(ResultsPage, "write", lambda *_, **__: setattr(clock, "now", clock.now + len(due)))
    page = runner.RefreshedPage(tmp_path / "study.html", {})
    for tick in range(2_000):
        clock.now = max(clock.now, float(tick))
        if page.is_due():
            due.append(clock.now)
            page.write(results_of({}), in_progress=True)
    assert due[0] == runner.FIRST_PAGE
    pauses = [later - earlier for earlier, later in pairwise(due)]
    assert min(pauses) >= runner.NEXT_PAGE
    assert sum(range(1, len(due))) <= runner.PAGES_SHARE * sum(pauses)


def test_stored_results_alone_have_their_pareto_picture(tmp_path: Path) -> None:
    results = read_results(STORED)
    page = page_of(results, tmp_path)
    assert "Seconds and accuracy" in page.titles
    assert "Courses" not in page.titles
    _, label = (label for label in page.labels if label.startswith("Dots of cost and test top-1"))
    lines = [line for line in results.lines if results.rows[line.row].compared]
    for line in lines:  # every point is named where the pointer is
        assert page.text.count(f"<title>{line.title}: ".replace("'", "&#39;")) == 2
    costs = {line: (line.seconds.mean, line.test_top1.mean) for line in lines if line.seconds and line.test_top1}
    front = pareto_front(costs)
    for line, (cost, top1) in costs.items():
        beaten = any(x <= cost and y >= top1 and (x, y) != (cost, top1) for x, y in costs.values())
        assert (line in front) != beaten
        assert (f"{line.title} (" in label) == (line in front)


def test_names_with_markup_and_figures_far_off_are_shown_as_they_are(tmp_path: Path) -> None:
    name = "<script>alert(1)</script> & <b>" + "long " * 30
    rows = {"ce": ResultRow(name), "a": ResultRow("名前 \x1b[31m"), "b": ResultRow("b")}
    done = runs(ce={0: 50.0, 1: 51.0, 2: 50.5}, a={0: 52.0, 1: 50.0, 2: 51.0}, b={0: 51.0, 1: 52.0, 2: 1.0})
    done["b"][2] |= {"test_nll": 400.0, "seconds": None}
    done["a"][0] |= {"student_epochs": 0}
    page = page_of(results_of(done, rows), tmp_path)
    assert page.tags["script"] == 0
    assert name.strip() in page.words
    assert "\x1b" not in page.text
    assert "Triangles at an edge stand for values beyond the axis: 400." in page.words


@pytest.mark.parametrize("top1", [{}, {"ce": {0: 5.0}}, {"a": {0: 5.0}}, {"ce": {0: 5.0}, "a": {0: 5.0}}])
def test_one_seed_has_no_interval_and_no_run_has_no_chart(tmp_path: Path, top1: dict[str, dict[int, float]]) -> None:
    page = page_of(results_of(runs(**top1)), tmp_path)
    assert ("Test top-1" in page.titles) == bool(top1)
    assert ("Difference to cross-entropy" in page.titles) == (len(top1) == 2)


def test_more_rows_than_can_be_told_apart_leave_the_best_in_colour(make_run: MakeRun, tmp_path: Path) -> None:
    source = make_run("ce", epochs=3)
    paths = []
    for number in range(MOST_LINES + 3):
        path = tmp_path / f"r{number}"
        shutil.copytree(source, path)
        (path / "recipe.toml").write_text(f'method = "ce"\nepochs = {number + 1}\n')
        (path / "summary.json").write_text(json.dumps(summary(float(number))))
        paths.append(path)
    found = load_comparison(paths)
    page = page_of(found.results, tmp_path, dict(found.folders))
    best = [f"r{number}" for number in range(MOST_LINES + 2, 3, -1)]
    assert ["others", "r0", *best] in page.legends
    assert f"The baseline and the best {MOST_LINES - 1} of {MOST_LINES + 2} other rows have a colour." in page.words


def test_every_seed_is_a_dot_in_its_place_and_the_mean_a_bar() -> None:
    chart = top1_chart(results_of(runs(ce={0: 10.0, 1: 20.0, 2: 12.0}, a={0: 11.0})))
    assert chart is not None
    assert [entry.name for entry in chart.legend] == ["baseline: cross-entropy"]
    uses = re.findall(r'<use [^>]*x="([\d.]+)"[^>]*style="fill: var\(--(\w+)\); (fill-opacity)?', chart.svg)
    dots = [float(x) for x, _, is_dot in uses if is_dot]
    bars = [float(x) for x, colour, is_dot in uses if not is_dot and colour != "faint"]
    ten, twenty = dots[:2]
    values = [10.0 + 10.0 * (x - ten) / (twenty - ten) for x in (*dots, *bars)]
    assert values == pytest.approx([10.0, 20.0, 12.0, 11.0, 14.0, 11.0], abs=1e-3)


def test_what_is_far_worse_than_all_others_leaves_the_axis_and_what_is_better_does_not() -> None:
    assert limits_with_the_best([10.0, 10.0, 10.1, 90.0]) == (10.0, 90.0)
    assert limits_with_the_best([70.0, 70.0, 70.1, 1.0]) == (70.0, 70.1)
    assert limits_with_the_best([2.0, 2.0, 2.1, 90.0], higher_is_better=False) == (2.0, 2.1)
    assert limits_with_the_best([]) is None
