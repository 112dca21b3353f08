"""What teachers, pathways, professors and grades leave in a log is on the page, in words, tables and charts."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import Page, edit, nulled, page_of
from tfkd_fast.events import ProfessorJudged, to_line
from tfkd_fast.files import from_checked_line
from tfkd_fast.methods.professor.training import in_words
from tfkd_fast.report import read_run
from tfkd_fast.report.teaching import MOST_PATHWAYS, select_pathways

MakeRun = Callable[..., Path]
Line = dict[str, Any]
"""One line of a log."""


def taught_run(make_run: MakeRun, *lines: Line, **start: Any) -> Path:
    """A run of 6 epochs and 3 classes, with these lines in its log and these facts at the start."""
    folder = make_run("ce", epochs=6, classes=["ant", "bee", "<i>cow"])
    edit(folder, lambda event: event.update(start if event["event"] == "start" else {}))
    with (folder / "metrics.jsonl").open("a") as file:
        unnumbered = [{key: value for key, value in line.items() if key != "line"} for line in lines]
        file.writelines(json.dumps({"time": 0.0} | line) + "\n" for line in unnumbered)
    return folder


def shares(epoch: int, *, skipped: int = 0, names: tuple[str, ...] = ("deep", "wide")) -> Line:
    """Weights that move away from each other by epochs."""
    weights = [0.5 + 0.05 * epoch, 0.5 - 0.05 * epoch]
    return {
        "event": "teachers",
        "epoch": epoch,
        "names": names,
        "logit_weights": weights,
        "feature_weights": weights[::-1],
        "updates": 10 * epoch,
        "skipped": skipped,
    }


def pathways(epoch: int, **weights: float) -> Line:
    """Names are written a_b for "a>b", as they are in a log."""
    names = [name.replace("_", ">") for name in weights]
    return {"event": "pathways", "epoch": epoch, "names": names, "weights": list(weights.values())}


def grade(number: int, first_epoch: int, epochs: int, labels: list[int]) -> Line:
    times = {"first_epoch": first_epoch, "epochs": epochs}
    return {"event": "grade", "grade": number, **times, "stages": 1 + number, "labels": labels}


def label_of(page: Page, beginning: str) -> str:
    (label,) = (label for label in page.labels if label.startswith(beginning))
    return label


def table_rows(page: Page, name: str) -> list[list[str]]:
    """The cells of the table in a group of that name, without its head."""
    (table,) = re.findall(rf"<caption>{name}</caption>(.*?)</table>", page.text, flags=re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], flags=re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


@pytest.mark.parametrize(("names", "term"), [(["deep"], "Teacher"), (["deep", "wide"], "Teachers")])
def test_the_teachers_are_named(make_run: MakeRun, names: list[str], term: str) -> None:
    page = page_of(taught_run(make_run, teachers=names))
    assert f"<dt>{term}</dt><dd>{', '.join(names)}</dd>" in page.text
    assert f"The student learned from the {term.lower()} as well" in page.words


def test_a_log_from_before_there_were_teachers_has_a_page(make_run: MakeRun) -> None:
    folder = make_run("ce", epochs=6)

    def forget(event: Line) -> None:
        for name in ("teachers", "teachers_saw_holdout", "steered_by_holdout"):
            event.pop(name, None)

    edit(folder, forget)
    assert "<dt>Teacher" not in page_of(folder).text


def test_a_method_without_a_target_and_a_controller_has_no_such_facts(make_run: MakeRun) -> None:
    folder = taught_run(make_run)
    assert "<dt>Target</dt>" in page_of(folder).text
    (folder / "recipe.toml").write_text('method = "kd"\n')
    assert not re.search("<dt>(Target|Controller)</dt>", page_of(folder).text)


@pytest.mark.parametrize("steers", [False, True])
def test_held_out_images_that_a_method_learned_from_were_not_only_watched(make_run: MakeRun, steers: bool) -> None:
    words = page_of(taught_run(make_run, steered_by_holdout=steers)).words
    assert ("steered the method." in words) == steers
    assert ("were only watched: they steered nothing" in words) != steers


@pytest.mark.parametrize(
    ("saw", "words"),
    [
        (True, "A teacher was trained on images that are held out"),
        (None, "It is not known whether a teacher"),
        (False, ""),
    ],
)
def test_teachers_that_have_seen_held_out_images_are_told(make_run: MakeRun, saw: bool | None, words: str) -> None:
    page = page_of(taught_run(make_run, teachers=["deep"], teachers_saw_holdout=saw))
    assert ("look better than they are" in page.words) == (saw is not False)
    assert words in page.words


def test_weights_of_teachers_are_shown_over_epochs(make_run: MakeRun) -> None:
    page = page_of(taught_run(make_run, shares(1), shares(2), shares(3, skipped=1)))
    assert page.titles.index("Teachers") < page.titles.index("Weights of the teachers")
    assert table_rows(page, "Mean weights in epoch 3") == [["deep", "0.65", "0.35"], ["wide", "0.35", "0.65"]]
    assert "was updated 30 times, and once an update was skipped." in page.words
    label = label_of(page, "Line charts of the teachers' weights")
    predictions, features = label.split("Features: ")
    assert "deep 0.55 at epoch 1, 0.65 at epoch 3" in predictions
    assert "deep 0.45 at epoch 1, 0.35 at epoch 3" in features
    assert ["deep", "wide", "equal share"] in page.legends


def test_weights_of_pathways_are_shown_over_epochs(make_run: MakeRun) -> None:
    first = pathways(1, **{"0_0 a": 0.2, "0_1 a": 0.3, "1_1 a": 0.0, "1_0 b": 0.0})
    second = pathways(2, **{"0_0 a": 0.0, "0_1 a": 0.1, "1_1 a": 0.7, "1_0 b": 0.0})
    folder = taught_run(make_run, first, second)
    page = page_of(folder)
    assert select_pathways(read_run(folder)) == [0, 1, 2]
    assert "Pathways at the beginning of epoch 2: 2 of 4 in use, the strongest 1>1 a 0.700, 0>1 a 0.100." in page.words
    assert all(f">{name}</text>" in page.text for name in ("0&gt;0 a", "0&gt;1 a", "1&gt;1 a"))
    assert "1&gt;0 b</text>" not in page.text
    assert "Left out, as never used: 1." in page.words
    label = label_of(page, "Heat map of the weights of 3 pathways, epochs 1 to 2")
    assert "0.5 at epoch 1, 0.8 at epoch 2" in label


def test_of_very_many_pathways_the_strongest_are_shown_in_the_order_of_the_log(make_run: MakeRun) -> None:
    weights = {f"{number}_0": 0.001 * (1 + number * 7 % 50) for number in range(50)}
    folder = taught_run(make_run, pathways(1, **weights))
    rows = select_pathways(read_run(folder))
    assert len(rows) == MOST_PATHWAYS
    assert rows == [number for number in range(50) if number * 7 % 50 >= 50 - MOST_PATHWAYS]
    assert f"Left out, of at most 0.014: {50 - MOST_PATHWAYS}." in page_of(folder).words


def test_pathways_of_which_none_is_used_are_told_in_words(make_run: MakeRun) -> None:
    page = page_of(taught_run(make_run, pathways(1, **{"0_0": 0.0, "0_1": 0.0})))
    assert "0 of 2 in use." in page.words
    assert "Weights of the pathways" not in page.titles


def professor(images: int, kept_images: int, teacher_top1: float, professor_top1: float, margin: float) -> Line:
    """What is logged of the professor of a teacher that errs on 11 % of the images."""
    judged = ProfessorJudged(
        teacher="deep",
        images=images,
        epochs=7,
        teacher_error=11.0,
        kept_images=kept_images,
        teacher_top1=teacher_top1,
        professor_top1=professor_top1,
        margin=margin,
        spearman=0.972,
    )
    return from_checked_line(to_line(in_words(judged), 0.0, 1).encode())


REPORTS = {
    "no better": professor(220, 68, 98.53, 97.06, 2.04),
    "not clearly better": professor(220, 68, 97.06, 98.53, 2.04),
    "is better": professor(220, 1068, 95.0, 98.0, 1.1),
}


@pytest.mark.parametrize("verdict", REPORTS)
def test_a_professor_is_judged_in_words_and_figures(make_run: MakeRun, verdict: str) -> None:
    page = page_of(taught_run(make_run, REPORTS[verdict]))
    assert verdict in page.words
    assert [other for other in REPORTS if other in page.words] == [verdict]
    assert "Teachers" not in page.titles


def test_the_figures_of_each_professor_stand_in_a_row(make_run: MakeRun) -> None:
    nan = math.nan
    told = ProfessorJudged(
        teacher="wide",
        images=221,
        epochs=7,
        teacher_error=2.0,
        kept_images=69,
        teacher_top1=90.0,
        professor_top1=nan,
        margin=nan,
        spearman=nan,
    )
    line = to_line(in_words(told), 0.0, 1).encode()
    page = page_of(taught_run(make_run, REPORTS["no better"], from_checked_line(line)))
    assert table_rows(page, "Professors") == [
        ["deep", "98.53", "97.06", "-1.47 ± 2.04", "68", "0.972", "220", "11.0"],
        ["wide", "90.00", "–", "–", "69", "–", "221", "2.0"],
    ]
    assert "the professor is told the label, so its accuracy says nothing." in page.words
    assert page.words.count("there is little to learn") == 1  # from a teacher that errs on 2 %


def test_grades_stand_in_a_table(make_run: MakeRun) -> None:
    again = page_of(taught_run(make_run, grade(1, 1, 2, [1]), grade(2, 3, 4, [0, 1, 2])))
    assert table_rows(again, "Grades") == [["1", "1–2", "2", "1", "bee"], ["2", "3–6", "3", "3", "ant, &lt;i&gt;cow"]]
    once = page_of(taught_run(make_run, grade(1, 1, 2, [1]), grade(2, 3, 4, [0, 2])))
    assert table_rows(once, "Grades")[1] == ["2", "3–6", "3", "2", "ant, &lt;i&gt;cow"]


def test_grades_are_marked_on_every_curve_where_they_begin(make_run: MakeRun) -> None:
    page = page_of(taught_run(make_run, grade(1, 1, 2, [1]), grade(2, 3, 4, [0, 1, 2])))
    charts = [chart for chart in re.findall(r"<svg.*?</svg>", page.text, flags=re.DOTALL) if ">epoch</text>" in chart]
    assert len(charts) == 4
    for chart in charts:
        (mark,), (before,), (first,) = (places(chart, text) for text in ("grade 2", "2", "3"))
        assert before < mark < first
        assert max(places(chart, "[^<]*", "end")) < places(chart, "grade 1")[0] < before


def test_the_accuracy_of_each_group_of_classes(make_run: MakeRun) -> None:
    groups = [
        {"event": "groups", "epoch": epoch, "grade": 1 + (epoch > 2), "holdout_top1": [10.0 * epoch, second]}
        for epoch, second in enumerate((None, None, 5.0, 25.0, 15.0, 20.0), start=1)
    ]
    page = page_of(taught_run(make_run, grade(1, 1, 2, [1]), grade(2, 3, 4, [0, 1, 2]), *groups))
    label = label_of(page, "Line chart of held-out accuracy by group: ")
    assert "group 1 10 at epoch 1, 60 at epoch 6, between 10 and 60" in label
    assert "group 2 5 at epoch 3, 20 at epoch 6, between 5 and 25" in label


def places(chart: str, text: str, anchor: str = "start|middle") -> list[float]:
    """How far to the right texts are: marks start there, ticks of epochs have their middle there, others their end."""
    found = re.findall(rf'text-anchor: (?:{anchor})[^>]* x="([\d.]+)"[^>]*>{text}</text>', chart)
    return [float(x) for x in found]


@pytest.mark.filterwarnings("error")
def test_nothing_but_nan_has_a_page(make_run: MakeRun) -> None:
    events = [shares(1), pathways(1, **{"0_0": 0.5}), REPORTS["no better"]]
    page = page_of(taught_run(make_run, *(nulled(event) | {"time": 0.0} for event in events)))
    assert not re.search(r"\bnan\b", page.words + " ".join(page.labels), re.IGNORECASE)
    assert "0 of 1 in use." in page.words


def test_names_are_escaped(make_run: MakeRun) -> None:
    professor = REPORTS["no better"] | {"teacher": "<b>", "verdict": "<u>", "warning": "<s>"}
    events = [shares(1, names=("<b>", "$x$")), pathways(1, **{"0_0 <b>": 0.5}), professor, grade(1, 1, 6, [2])]
    page = page_of(taught_run(make_run, *events, teachers=["<b>"]))
    assert not page.tags.keys() & {"b", "u", "s", "i"}
    assert "$x$" in page.words


def test_parts_of_a_summary_are_spelt_out(make_run: MakeRun) -> None:
    folder = taught_run(make_run)
    path = folder / "summary.json"
    parts = {"professors": [{"teacher": "deep", "teacher_top1": 98.25, "spearman": None}]}
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    assert "teacher deep, teacher_top1 98.25 %, spearman –" in page_of(folder).words
