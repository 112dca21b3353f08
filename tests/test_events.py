"""Events as lines of a log: every kind comes back as it went, and logs of other versions can be read.

tests/old_runs holds runs of the version before the log had a format: their recipes, logs and summaries.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tfkd_fast import events
from tfkd_fast.errors import UserError
from tfkd_fast.events import Event, RunFinished, RunStarted, TargetApplied, from_line, to_line
from tfkd_fast.report import read_run, write_report
from tfkd_fast.runs.log import read_log
from tfkd_fast.runs.replay import replay_table
from tfkd_fast.study import Run, StudyFolder, results
from tfkd_fast.study.plan import make_study

OLD_RUNS = Path(__file__).with_name("old_runs")
OLD = sorted(path.name for path in OLD_RUNS.iterdir())

FACTS: dict[str, Any] = {
    "method": "tfkd-mrs",
    "dataset": "digits",
    "model": "vgg8",
    "seed": 3,
    "epochs": 4,
    "device": "cpu",
    "device_name": "a CPU",
    "precision": "fp32",
    "loader": "resident",
    "ops": "cpp",
    "parameters": 62_330,
    "train_images": 1000,
    "holdout_images": 200,
    "candidates": 2,
    "teachers": ("deep", "wide"),
    "teachers_saw_holdout": None,
    "version": "0.1.0",
    "torch": "2.14.1",
}
HOLDOUT = events.HoldoutFigures(top1=61.5, nll=1.25, calibrated_nll=1.125, temperature=0.5, ece=0.0625)
TARGET = events.CandidateTarget(
    role="mean",
    action=(0.1, -2.5),
    log_probability=-1.5,
    true_mass=0.9,
    divergence=0.1,
    mass_by_rank=(0.9, 0.06, 0.04),
    sources={"memory": {"share": 0.1, "temperature": 1.0}},
)
ONE_OF_EACH = [
    RunStarted(**FACTS, classes=("ant", "bee ‖ é"), format=events.FORMAT),
    events.RunResumed(**FACTS, epoch=2),
    RunFinished(
        **FACTS,
        student_epochs=8,
        images_per_second=1e5,
        seconds=12.5,
        holdout_top1=61.5,
        test_top1=60.25,
        test_nll=1.3,
        test_ece=1e-7,
    ),
    events.LoaderChosen(chosen="dali", images_per_second={"dali": 9.5e3}, refused={"resident": "too large"}),
    events.ProcessesJoined(count=3, share="batch"),
    events.ConvolutionsChosen(passes={"taps": 2, "torch": 9}, seconds=0.5),
    events.StepsCompiled(epoch=1, seconds=3.25),
    events.EpochEnded(
        epoch=3,
        candidate=1,
        learning_rate=2e-05,
        train_loss=0.1 + 0.2,
        terms={"hard": 0.1, "soft": 0.2},
        train_top1=70.0,
        images_per_second=4e3,
        holdout=HOLDOUT,
        holdout_classes=10,
    ),
    events.RunDiverged(epoch=3, reason="the loss became nan in epoch 3, step 2"),
    events.StoppedEarly(epoch=9, best_epoch=6, patience=3),
    events.CandidatesAveraged(
        epoch=4,
        candidates=(2, 0),
        holdout=events.HoldoutFigures(top1=61.5, nll=1.25, calibrated_nll=1.2, temperature=1.1, ece=0.05),
    ),
    events.CandidateDiverged(epoch=3, candidate=1, reason="the loss became nan in epoch 3, step 2"),
    events.TargetsDecided(
        interval=1,
        first_epoch=2,
        epochs=2,
        action_names=("true mass", "rank 1"),
        progress={"train_loss": 1.0},
        observation=(0.5, -0.5),
        candidates=(TARGET, TARGET),
    ),
    events.CandidateSelected(
        interval=1,
        epoch=3,
        criteria=("holdout-nll", "holdout-top1"),
        higher_is_better=(False, True),
        values=((1.0, 0.5), (1.5, 0.25)),
        ranks=((1.0, 1.5), (2.0, 1.5)),
        front=(1, 2),
        aggregate="borda",
        scores=(2.5, 3.5),
        order=(0, 1),
        winner=0,
        survivors=(0,),
    ),
    events.ControllerRewarded(interval=1, rewards=(0.5, -0.5), advantages=(1.0, -1.0), update={"draws": 12.0}),
    TargetApplied(
        interval=1,
        first_epoch=2,
        epochs=2,
        action=None,
        learning_rate_factor=1.5,
        true_mass=1.0,
        divergence=0.0,
    ),
    events.TeachersWeighed(
        epoch=1, names=("a", "b"), logit_weights=(0.25, 0.75), feature_weights=(0.5, 0.5), updates=3, skipped=1
    ),
    events.PathwaysWeighed(epoch=1, names=("0>1",), weights=(0.25,)),
    events.GradeStarted(grade=2, first_epoch=3, epochs=2, stages=3, labels=(0, 1, 2)),
    events.GroupsJudged(epoch=3, grade=2, holdout_top1=(61.5, 40.0)),
    events.ProfessorJudged(
        teacher="deep",
        images=220,
        epochs=7,
        teacher_error=11.0,
        kept_images=68,
        teacher_top1=98.5,
        professor_top1=97.0,
        margin=2.0,
        spearman=0.97,
        verdict="the professor is no better",
    ),
    events.StudentExamined(
        class_images=(3, 1),
        class_top1=(66.5, 100.0),
        confusions=(events.Confusion(label=0, prediction=1, images=1),),
        bins=(events.ConfidenceBin(images=4, confidence=80.5, top1=75.0),),
        mistakes=(events.Mistake(image=2, label=0, prediction=1, confidence=62.5),),
    ),
]


def copy_of(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUNS / name, tmp_path / name))


def kinds_in(module: Any) -> set[type[Event]]:
    """The classes of events that a module defines: those that have a kind of their own."""
    return {thing for thing in vars(module).values() if isinstance(thing, type) and "kind" in vars(thing)}


def test_there_is_one_of_each() -> None:
    assert {type(event) for event in ONE_OF_EACH} == kinds_in(events)
    assert len({event.kind for event in ONE_OF_EACH}) == len(ONE_OF_EACH)


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: event.kind)
def test_an_event_comes_back_as_it_went(event: Event) -> None:
    line = to_line(event, 1.23456, 7)
    assert "\n" not in line
    assert json.loads(line)["event"] == event.kind
    assert from_line(line) == (1.235, event, 7)
    assert from_line(line.encode()) == (1.235, event, 7)
    assert to_line(event, 1.23456, 7) == line


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: event.kind)
def test_keys_of_a_newer_version_are_ignored(event: Event) -> None:
    values = json.loads(to_line(event, 0.0, 1))
    read = from_line(json.dumps(values | {"from_the_future": {"a": [1]}})).event
    if isinstance(event, RunFinished):  # whose summary may hold anything
        assert isinstance(read, RunFinished)
        assert read.model_extra == {"from_the_future": {"a": [1]}}
    else:
        assert read == event


def test_kinds_of_a_newer_version_are_passed_over() -> None:
    assert from_line('{"event": "from the future", "time": 2.5, "epoch": "?"}') == (2.5, None, None)


def test_an_event_cannot_be_changed_or_built_of_the_wrong_things() -> None:
    event = events.StepsCompiled(epoch=1, seconds=1.0)
    with pytest.raises(ValidationError):
        event.epoch = 2  # type: ignore[misc]
    with pytest.raises(ValidationError):
        events.StepsCompiled.model_validate({"epoch": "first", "seconds": 1.0})
    with pytest.raises(ValidationError):
        events.StepsCompiled.model_validate({"epoch": 1})


def test_json_has_no_nan_and_null_is_read_as_nan() -> None:
    sent = events.ControllerRewarded(interval=0, rewards=(math.nan, math.inf, 1.0), update={"std": -math.inf})
    line = to_line(sent, 0.0, 1)
    values = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (values["rewards"], values["advantages"], values["update"]) == ([None, None, 1.0], None, {"std": None})
    read = from_line(line).event
    assert isinstance(read, events.ControllerRewarded)
    assert [math.isnan(reward) for reward in read.rewards] == [True, True, False]
    assert read.advantages is None
    assert read.update is not None
    assert math.isnan(read.update["std"])


def test_what_a_method_adds_to_the_summary_is_kept() -> None:
    finish = RunFinished(**json.loads((OLD_RUNS / "education" / "summary.json").read_text()))
    values = json.loads(to_line(finish, 0.0, 1))
    assert values["group_top1"] == json.loads((OLD_RUNS / "education" / "summary.json").read_text())["group_top1"]
    assert from_line(json.dumps(values)).event == finish


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"event": "epo', "Unterminated string"),
        (b"[1, 2]", "it is a list"),
        (b'{"event": "\xff"}', "decode"),
        (b'{"time": 1.0}', "no 'event'"),
        (b'{"event": "epoch"}', "no 'time'"),
        (b'{"event": "epoch", "time": null}', "float"),
        (b'{"event": "compile", "time": 1.0, "seconds": 1}', "epoch: Field required"),
        (
            b'{"event": "compile", "time": 1.0, "epoch": "often", "seconds": 1}',
            "epoch: Input should be a valid integer",
        ),
        (
            b'{"event": "pathways", "time": 1.0, "epoch": 1, "names": ["a"], "weights": [[]]}',
            "weights.0: Input should be a valid number",
        ),
    ],
)
def test_a_damaged_line_says_where(line: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_line(line)


def test_a_damaged_log_is_refused_but_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = copy_of("tfkd-mrs", tmp_path) / "metrics.jsonl"
    whole = path.read_bytes()
    lines = read_log(path)
    path.write_bytes(whole[:-40])
    assert read_log(path) == lines[:-1]
    path.write_bytes(whole[:-40] + b"\n")
    with pytest.raises(UserError, match=rf"line {len(lines)} of .*metrics\.jsonl is damaged .*: empty it"):
        read_log(path)


# Runs of older versions.


@pytest.mark.parametrize("name", OLD)
def test_every_line_of_an_old_log_is_read_in_full(name: str) -> None:
    """What is read of it says all that the line says, under the same names, but for NaN, which JSON has not."""
    for text in (OLD_RUNS / name / "metrics.jsonl").read_text().splitlines():
        old = json.loads(text)
        seconds, event, _ = from_line(text)
        assert event is not None
        new = json.loads(to_line(event, seconds, 1))
        assert isinstance(event, TargetApplied) == (old["event"] == "taught")
        assert {key: new[key] for key in old if key != "event"} == {key: old[key] for key in old if key != "event"}


@pytest.mark.parametrize("name", OLD)
def test_an_old_run_has_a_report(name: str, tmp_path: Path) -> None:
    folder = copy_of(name, tmp_path)
    assert read_run(folder).start.format == 0
    page = write_report(folder).read_text()
    top1 = json.loads((folder / "summary.json").read_text())["test_top1"]
    assert f"{top1:.2f}" in page


def test_an_old_run_can_be_replayed() -> None:
    table = replay_table(OLD_RUNS / "tfkd-mrs")
    applied = [json.loads(line) for line in (OLD_RUNS / "tfkd-mrs" / "metrics.jsonl").read_text().splitlines()]
    applied = [event for event in applied if event["event"] == "taught" and event["action"] is not None]
    assert len(applied) == 3
    assert [entry["action"] for entry in table["controller"]["recorded"]] == [event["action"] for event in applied]
    assert [entry["start"] for entry in table["controller"]["recorded"]] == [
        pytest.approx((event["first_epoch"] - 1) / 6) for event in applied
    ]


def test_old_runs_stand_in_the_table_of_a_study(tmp_path: Path) -> None:
    tables = "".join(f'[rows.{name}]\nmethod = "ce"\n' for name in ("tfkd-mrs", "education"))
    study = make_study("old", f'seeds = [0]\nbaseline = "education"\n{tables}')
    folder = StudyFolder(tmp_path)
    for name in study.rows:
        shutil.copytree(OLD_RUNS / name, folder.run(Run(study.rows[name], 0)).path)
    runs = folder.finished(study, [0])
    rows = {row.name: results.ResultRow(row.title, row.compared) for row in study.rows.values()}
    found = {line.row: line for line in results.StudyResults("old", (0,), "education", rows, runs).lines}
    for name in study.rows:
        summary = json.loads((OLD_RUNS / name / "summary.json").read_text())
        top1 = found[name].test_top1
        assert top1 is not None
        assert top1.mean == summary["test_top1"]
    difference = found["tfkd-mrs"].difference
    assert difference is not None
    assert difference.mean == pytest.approx(runs["tfkd-mrs"][0]["test_top1"] - runs["education"][0]["test_top1"])
