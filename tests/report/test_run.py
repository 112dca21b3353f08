"""Reading a run folder: what is in it, which candidate is the student, and what damage is forgiven."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import recipe, trainer
from tfkd_fast.errors import UserError
from tfkd_fast.events import LogLine, TeachersWeighed
from tfkd_fast.report import read_run
from tfkd_fast.report.run import weights_of

MakeRun = Callable[..., Path]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rewrite(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_is_read_by_kind(make_run: MakeRun) -> None:
    folder = make_run(epochs=20, interval=2, warmup=4, candidates=4)
    run = read_run(folder)
    assert run.start.method == run.recipe["method"] == "tfkd-mrs"
    assert run.start.classes[:2] == ("class 0", "class 1")
    assert len(run.epochs) == 4 * 1 + 16 * 4
    assert len(run.decisions) == 1 + 8  # the warm-up, then every second epoch
    assert len(run.controller_decisions) == len(run.selections) == len(run.rewards) == 8
    assert run.summary == json.loads((folder / "summary.json").read_text())
    assert run.recipe_text == (folder / "recipe.toml").read_text()
    assert run.seconds == lines_of(folder)[-1]["time"]


def test_the_student_is_the_winner_of_each_interval(make_run: MakeRun) -> None:
    folder = make_run(epochs=20, interval=2, warmup=4, candidates=4)
    events = lines_of(folder)
    winners = {event["interval"]: event["winner"] for event in events if event["event"] == "selection"}
    expected = []
    for decision in (event for event in events if event["event"] == "decision"):
        slot = winners.get(decision["interval"], 0)
        expected += [(decision["first_epoch"] + step, slot) for step in range(decision["epochs"])]
    assert len(set(winners.values())) > 1  # or the test could not tell
    assert [(record.epoch, record.candidate) for record in read_run(folder).student] == expected


def test_selections_without_decisions_still_tell_the_student(make_run: MakeRun) -> None:
    folder = make_run(epochs=20)
    with_decisions = read_run(folder).student
    rewrite(folder, [event for event in lines_of(folder) if event["event"] != "decision"])
    assert read_run(folder).student == with_decisions


def test_between_the_events_of_a_probe_the_only_candidate_is_the_student(make_run: MakeRun) -> None:
    folder = make_run(epochs=20, interval=2, warmup=4)
    events = lines_of(folder)
    kept = [
        event
        for event in events
        if not (event["event"] == "epoch" and 5 <= event["epoch"] <= 10 and event["candidate"] > 0)
        and not (event["event"] == "selection" and event["epoch"] <= 10)
    ]
    rewrite(folder, kept)
    run = read_run(folder)
    assert [record.candidate for record in run.student[:10]] == [0] * 10
    assert [record.candidate for record in run.student[10:12]] == [run.selections[0].winner] * 2


def test_before_its_selection_an_interval_shows_candidate_0(make_run: MakeRun) -> None:
    run = read_run(make_run(epochs=20, interval=4, warmup=4, trained=10))
    assert run.summary is None
    assert run.student[-1].epoch == 10
    assert [record.candidate for record in run.student[-2:]] == [0, 0]


def test_of_successive_halving_the_student_is_what_its_survivor_was_taught(tmp_path: Path) -> None:
    selection = {"budget": "halving", "candidates": 4}
    halved = recipe(
        "tfkd-mrs",
        epochs=16,
        data={"holdout": 0.8},
        target={"family": "rank-binned", "sources": []},
        controller={"name": "ppo", "warmup_epochs": 1},
        selection=selection,
    )
    trainer(halved, tmp_path).run()
    run = read_run(tmp_path)
    taught = [event for event in lines_of(tmp_path) if event["event"] == "target"][1:]  # after the warm-up
    assert [(decision.first_epoch, decision.epochs) for decision in run.controller_decisions] == [
        (event["first_epoch"], event["epochs"]) for event in taught
    ]
    shown = [run.survivor(decision) for decision in run.controller_decisions]
    assert [list(target.action) for target in shown] == [event["action"] for event in taught]
    last_of_round = [selection.epoch for selection in run.selections if len(selection.survivors) == 1]
    winners = {selection.epoch: selection.winner for selection in run.selections}
    student = {record.epoch: record.candidate for record in run.student}
    assert len(last_of_round) == 2
    assert [student[epoch] for epoch in last_of_round] == [winners[epoch] for epoch in last_of_round]
    assert any(run.winners.values())  # or the test could not tell


def test_rivals_start_at_their_parent_and_last_an_interval(make_run: MakeRun) -> None:
    run = read_run(make_run(epochs=20, interval=2, warmup=4, candidates=4))
    student = {record.epoch: record for record in run.student}
    assert len(run.rivals) == 8 * 3
    for parent, *track in run.rivals:
        assert parent is student[parent.epoch]
        assert [record.epoch for record in track] == [parent.epoch + 1, parent.epoch + 2]
        assert len({record.candidate for record in track}) == 1
        assert all(record is not student[record.epoch] for record in track)


@pytest.mark.parametrize("cut", [2, 3, 20, 100])
def test_a_cut_off_last_line_is_left_out(make_run: MakeRun, cut: int) -> None:
    folder = make_run(trained=9)
    path = folder / "metrics.jsonl"
    *whole, _ = path.read_bytes().splitlines(keepends=True)
    before = read_run(folder)
    path.write_bytes(path.read_bytes()[:-cut])
    run = read_run(folder)
    path.write_bytes(b"".join(whole))
    assert run == read_run(folder)
    assert run != before


def test_a_last_line_that_only_lacks_its_end_counts(make_run: MakeRun) -> None:
    folder = make_run(trained=9)
    before = read_run(folder)
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read_run(folder) == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"event": "epo', "Invalid control character"),
        (b"[1, 2]", "list"),
        (b"\xff\xfe", "decode"),
        (b'{"time": 1.0}', "no 'event'"),
        (b'{"event": "epoch"}', "no 'time'"),
        (b'{"event": "epoch", "time": 1.0}', "epoch: Field required"),
        (b'{"event": "compile", "time": 1.0, "epoch": "no", "seconds": 1}', "epoch: Input should be a valid integer"),
    ],
)
def test_a_damaged_line_is_named(make_run: MakeRun, line: bytes, reason: str) -> None:
    folder = make_run(trained=9)
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    lines[6] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match=rf"line 7 of .*metrics\.jsonl is damaged .*{reason}"):
        read_run(folder)


@pytest.mark.parametrize(
    ("kind", "field", "value", "reason"),
    [
        ("selection", "ranks", [[1.0]], "values, ranks, front, scores, order must have one length"),
        ("selection", "order", [], "must have one length"),
    ],
)
def test_an_event_that_contradicts_itself_is_named(
    make_run: MakeRun, kind: str, field: str, value: Any, reason: str
) -> None:
    folder = make_run("tfkd-mrs")
    lines = lines_of(folder)
    next(line for line in lines if line["event"] == kind)[field] = value
    rewrite(folder, lines)
    with pytest.raises(UserError, match=rf"of .*metrics\.jsonl is damaged .*{reason}"):
        read_run(folder)


def test_weights_are_read_in_the_order_of_epochs_and_of_the_same_teachers() -> None:
    def line(epoch: int, names: tuple[str, ...]) -> LogLine:
        return LogLine(
            0.0,
            TeachersWeighed(
                epoch=epoch, names=names, logit_weights=(0.5, 0.5), feature_weights=(0.5, 0.5), updates=0, skipped=0
            ),
        )

    log = Path("metrics.jsonl")
    read = weights_of(TeachersWeighed, [line(2, ("a", "b")), line(1, ("a", "b"))], log)
    assert [event.epoch for event in read] == [1, 2]
    with pytest.raises(UserError, match="weights of other teachers in some epochs"):
        weights_of(TeachersWeighed, [line(1, ("a", "b")), line(2, ("a", "c"))], log)


def test_unknown_events_and_keys_are_left_aside(make_run: MakeRun) -> None:
    folder = make_run(trained=9)
    before = read_run(folder)
    lines = lines_of(folder)
    lines[3]["future"] = {"a": 1}
    rewrite(folder, [*lines[:5], {"event": "future", "time": 0.0}, *lines[5:]])
    assert read_run(folder) == before


def test_null_is_nan(make_run: MakeRun) -> None:
    folder = make_run(trained=3)
    lines = lines_of(folder)
    last = lines[-1]
    last["train_loss"] = last["holdout"]["nll"] = None
    rewrite(folder, lines)
    record = read_run(folder).epochs[-1]
    assert math.isnan(record.train_loss)
    assert record.holdout is not None
    assert math.isnan(record.holdout.nll)
    assert record.train_top1 == last["train_top1"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        read_run(tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(UserError, match=r"has no metrics\.jsonl yet"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"event": "sta')
    with pytest.raises(UserError, match="has no start event"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["recipe.toml", "summary.json"])
def test_a_damaged_neighbour_is_named(make_run: MakeRun, name: str) -> None:
    folder = make_run()
    (folder / name).write_text("{")
    with pytest.raises(UserError, match=rf"{name} is (not valid TOML|damaged)"):
        read_run(folder)
