"""The page of a search, and its files: what was found, every trial, each key."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import Page
from tfkd_fast.search.charts import best_so_far
from tfkd_fast.search.folder import SearchFolder
from tfkd_fast.search.page import render
from tfkd_fast.search.plan import make_search
from tfkd_fast.search.results import SearchResults, TrialRecord, as_csv, as_json
from tfkd_fast.search.words import finding_words

KEYS = ("optimizer.learning_rate", "data.crop_area", "model.name")


def record(number: int, state: Any, rate: float, course: list[float], reason: str = "") -> TrialRecord:
    values = dict(zip(KEYS, (rate, [0.25, 1.0], "vgg8"), strict=True))
    judgement = course[-1] if state in ("finished", "pruned") else None
    by_epoch = dict(enumerate(course, start=1))
    return TrialRecord(
        number, state, values, judgement, 100 - 10 * course[-1] if course else None, judgement, by_epoch, reason
    )


TRIALS = [
    record(0, "finished", 0.05, [2.0, 1.5, 1.25]),
    record(1, "finished", 0.5, [2.2, 1.4, 1.0]),
    record(2, "pruned", 0.011, [2.9, 2.8]),
    record(3, "failed", 0.9, [], "it diverged: <the loss> became NaN"),
    record(4, "finished", 0.2, [2.1, 1.6, 1.125]),
    record(5, "in progress", 0.3, [2.0]),
]


def results(trials: list[TrialRecord] = TRIALS, judge: str = "nll") -> SearchResults:
    ranges = {
        "optimizer.learning_rate": {"log": [0.01, 1.0]},
        "data.crop_area": {"choices": [[0.08, 1.0], [0.25, 1.0]]},
        "model.name": {"choices": ["vgg8", "resnet20"]},
    }
    recipe = {"method": "ce", "data": {"dataset": "digits", "crop": "resized", "crop_area": [0.25, 1.0]}}
    return SearchResults(make_search("<mine>", recipe, {"judge": judge, "ranges": ranges}, {}, "made.toml"), 8, trials)


def test_the_best_of_the_finished_is_found() -> None:
    found = results()
    assert [trial.number for trial in found.best_first] == [1, 4, 0]
    assert (found.ended, found.count("pruned"), found.count("failed")) == (5, 1, 1)
    assert best_so_far(found) == [1.25, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert finding_words(found) == (
        "The best of 5 trials is trial 1, held-out calibrated NLL 1.0000, with optimizer.learning_rate 0.5, "
        "data.crop_area [0.25, 1.0], model.name vgg8. It is 0.2500 nats better than the recipe as it is, which trial 0 "
        "is."
    )
    assert results(judge="top1").best == TRIALS[0]  # whose judgement is the highest
    assert "none was better than the recipe as it is, with optimizer.learning_rate 0.05" in finding_words(
        results(TRIALS[:1])
    )
    assert finding_words(results(TRIALS[2:4])) == "No trial has finished yet, of 8."


@pytest.mark.parametrize("trials", [TRIALS[:4], TRIALS[2:3], []])
def test_the_page_is_whole(trials: list[TrialRecord], tmp_path: Path) -> None:
    found = results(trials)
    page = render(found, SearchFolder(tmp_path), in_progress=False)
    read = Page(page)
    assert not [target for target in read.targets if not target.startswith("#")]
    assert len(read.ids) == len(set(read.ids))
    assert "<mine>" not in page
    assert "http-equiv" not in page
    assert finding_words(found) in read.words


def test_the_page_shows_every_kind_of_trial(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path)
    folder.trial(1).path.mkdir(parents=True)
    folder.trial(1).report.touch()
    page = render(results(), folder, in_progress=True)
    assert "http-equiv" in page
    assert '<a href="trials/1/report.html">' in page
    assert '<a href="trials/4' not in page
    assert page.index("The best trials") < page.index("Pruned trials") < page.index("Failed trials")
    assert "it diverged: &lt;the loss&gt; became NaN" in page
    assert page.count("<svg") == 2 + len(KEYS)
    assert "learning_rate = 0.5" in page
    assert "no test image was read" in page


def test_files_have_all_trials() -> None:
    found = results()
    values = as_json(found)
    assert (values["best"], values["judge"], values["planned"]) == (1, "nll", 8)
    assert [trial["state"] for trial in values["trials"]] == [trial.state for trial in TRIALS]
    assert values["trials"][2]["course"] == {"1": 2.9, "2": 2.8}
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["optimizer.learning_rate"] for row in rows] == ["0.05", "0.5", "0.011", "0.9", "0.2", "0.3"]
    assert rows[1]["data.crop_area"] == "[0.25, 1.0]"
    assert (rows[3]["reason"], rows[3]["holdout_calibrated_nll"]) == ("it diverged: <the loss> became NaN", "")
