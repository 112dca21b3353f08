"""The files of results hold the same figures, and what is read from them is what was written, or refused."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.study.made_up import ROWS, results_of, runs, summary
from tests.support.fuzz import damages, fuzzed, outcome
from tfkd_fast.errors import UserError
from tfkd_fast.study.results import ResultRow, StudyResults
from tfkd_fast.study.stored import ResultsFiles, markdown, read_results, runs_csv, table_csv

STORED = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture
def results() -> StudyResults:
    done = runs(ce={0: 10.0, 1: 20.0}, a={0: 11.0, 1: 23.0, 2: 5.0})
    rows = ROWS | {"a": ResultRow("a, or | <b>"), "b": ResultRow("b", compared=False)}
    return results_of(done, rows, {"ours": (("a", "ce"),)}, {"b-seed0": "it diverged"})


def test_what_was_written_is_read(results: StudyResults, tmp_path: Path) -> None:
    files = ResultsFiles(tmp_path)
    files.write(results)
    assert read_results(files.results) == results
    assert {path.name for path in tmp_path.iterdir()} == files.names - {"study.html"}


def test_every_file_has_the_same_figures(results: StudyResults) -> None:
    line = results.lines[1]
    assert line.difference
    (baseline, ours, _) = csv.DictReader(io.StringIO(table_csv(results)))
    assert (ours["row"], ours["title"], ours["seeds"]) == ("a", "a, or | <b>", "0 1 2")
    assert float(ours["difference_low"]) == line.difference.low
    assert float(ours["adjusted_p"]) == line.adjusted_p
    assert (baseline["difference_mean"], baseline["test_nll_mean"]) == ("", "2.5")
    assert "difference" not in baseline
    by_run = {(run["row"], run["seed"]): run for run in csv.DictReader(io.StringIO(runs_csv(results)))}
    assert {key: float(run["test_top1"]) for key, run in by_run.items()} == {
        (row, str(seed)): top1 for row, own in results.top1.items() for seed, top1 in own.items()
    }
    text = markdown(results)
    assert r"| a, or \| <b> | 3/3 | 13.00 ± 9.17 | +2.00 [-10.71, +14.71] |" in text
    assert "- Missing: b-seed0: it diverged" in text


@pytest.mark.parametrize("path", sorted(STORED.glob("*.json")), ids=lambda path: path.stem)
def test_the_stored_results_come_to_what_they_say(path: Path) -> None:
    stored, found = json.loads(path.read_text()), read_results(path)
    assert [line.row for line in found.lines] == [line["row"] for line in stored["table"]]
    for ours, theirs in zip(found.lines, stored["table"], strict=True):
        for name in ("test_top1", "difference"):
            figures = getattr(ours, name)
            assert (figures and figures.mean) == pytest.approx(theirs[name] and theirs[name]["mean"])
        assert ours.adjusted_p == pytest.approx(theirs["adjusted_p"])
    remarks = " ".join(found.remarks)
    for name, figures in stored["contrasts"].items():
        contrast = found.contrast_differences.get(name)
        assert (contrast and contrast.mean) == pytest.approx(figures and figures["mean"]) or name in remarks


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"baseline": "nobody"}, "names the row 'nobody', not in its table"),
        (
            {"runs": [{"row": "z", "seed": 0, "summary": summary(1.0)}]},
            "names the row 'z', not in its table",
        ),
        ({"runs": 3}, "is damaged or of another kind (runs: "),
        ({"seeds": ["x"]}, "is damaged or of another kind (seeds.0: "),
    ],
)
def test_results_that_contradict_themselves_are_refused(
    results: StudyResults, tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    files = ResultsFiles(tmp_path)
    files.write(results)
    values = json.loads(files.results.read_text()) | change
    values.pop("sha256")
    files.results.write_text(json.dumps(values))
    with pytest.raises(UserError, match="the file of results ") as refused:
        read_results(files.results)
    assert sentence in str(refused.value)


@fuzzed(20)
@given(data=st.data())
def test_damaged_results_are_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    files = ResultsFiles(tmp_path_factory.mktemp("results"))
    files.write(results_of(runs(ce={0: 10.0}, a={0: 11.0})))
    files.results.write_bytes(data.draw(damages(files.results.read_bytes())))
    assert isinstance(outcome(lambda: read_results(files.results)), StudyResults | UserError)
