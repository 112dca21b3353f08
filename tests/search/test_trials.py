"""Trials are suggested and pruned by the search and earlier trials alone."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tfkd_fast.errors import UserError
from tfkd_fast.search.plan import Search, make_search
from tfkd_fast.search.trials import Suggestion, Trials

RANGES = {
    "optimizer": {"learning_rate": {"log": [0.01, 1.0]}, "momentum": {"float": [0.5, 0.95]}},
    "data.batch_size": {"int": [16, 128]},
    "data.crop_area": {"choices": [[0.08, 1.0], [0.25, 1.0]]},
}
RECIPE = {"method": "ce", "epochs": 8, "data": {"dataset": "digits", "crop": "resized"}}


def search(**settings: object) -> Search:
    return make_search("made", RECIPE, {"random_trials": 2, "ranges": RANGES, **settings}, {}, "made.toml")


def goodness(trial: Suggestion) -> float:
    """An NLL that falls with the learning rate."""
    return 3.0 - float(trial.values["optimizer.learning_rate"]) + trial.values["data.batch_size"] / 1000


def conduct(trials: Trials, numbers: Sequence[int], jobs: int = 1) -> list[Suggestion]:
    """Train these trials, one after the other."""
    found = []
    for number in numbers:
        trial = trials.begin(number, jobs)
        assert trial is not None
        trials.complete(trial, goodness(trial), {"top1": 50.0, "nll": goodness(trial)})
        found.append(trial)
    return found


def test_a_search_that_was_killed_makes_the_same_suggestions(tmp_path: Path) -> None:
    whole = Trials(search(), tmp_path / "whole")
    values = [trial.values for trial in conduct(whole, range(7))]
    assert len({repr(one) for one in values}) == 7
    path = tmp_path / "killed"
    for number in range(7):  # killed after each trial began, in the middle of a line of the journal
        trials = Trials(search(), path)
        trial = trials.begin(number, 1)
        assert trial is not None
        trials.close()
        with path.open("a") as journal:
            journal.write('{"op_code": 4, "worker')
        trials = Trials(search(), path)
        assert [trials.values(one) for one in trials.all] == values[: number + 1]
        conduct(trials, [number])
        trials.close()


def test_trials_side_by_side_are_the_same_whatever_the_order_they_end_in(tmp_path: Path) -> None:
    """Three at a time: each knows all but the latest four, waits for those, and may begin before the others end."""
    found = []
    for order in (lambda numbers: numbers[0], lambda numbers: numbers[-1]):
        trials, live, values = Trials(search(), tmp_path / str(len(found))), {}, {}
        while len(values) < 9:
            number = len(trials.all)
            begun = trials.begin(number, 3) if len(live) < 3 and number < 9 else None
            if begun is not None:
                live[number] = begun
                continue
            trial = live.pop(order(sorted(live)))
            trials.complete(trial, goodness(trial), {})
            values[trial.number] = trial.values
        found.append(dict(sorted(values.items())))
    assert found[0] == found[1]


def test_the_first_trial_is_the_recipe_as_it_is(tmp_path: Path) -> None:
    made = search()
    (first,) = conduct(Trials(made, tmp_path / "journal"), [0])
    assert first.values == made.own_values()
    assert made.recipe(first.values) == made.base


@pytest.mark.parametrize("judge", ["nll", "top1"])
def test_what_is_worse_than_the_median_is_pruned(judge: str, tmp_path: Path) -> None:
    """After as many epochs as all trials have; its best epoch counts."""
    trials = Trials(search(judge=judge, prune_after=3), tmp_path / "journal")
    sign = 1 if judge == "nll" else -1
    courses = [[5.0, 4.0, 3.0, 2.5], [5.0, 4.5, 4.0, 3.5], [5.0, 4.0, 2.0, 1.5], [5.0, 3.0, 2.8, 2.6]]
    for number, course in enumerate(courses):
        trial = trials.begin(number, 1)
        assert trial is not None
        assert [trial.report(epoch, sign * value) for epoch, value in enumerate(course, start=1)] == [False] * 4
        trials.complete(trial, sign * course[-1], {})
    median = statistics.median(course[2] for course in courses)
    for number, (third, pruned) in enumerate(((median - 0.01, False), (median + 0.01, True)), start=4):
        trial = trials.begin(number, 1)
        assert trial is not None
        assert [trial.report(epoch, sign * value) for epoch, value in ((1, 9.0), (2, 8.0), (3, third))] == [
            False,
            False,
            pruned,
        ]
        if pruned:
            trials.prune(trial, {"top1": 1.0, "nll": 1.0})
            assert (trials.all[number].state, trials.all[number].value) == (TrialState.PRUNED, sign * third)
        else:
            trials.complete(trial, sign * third, {})
    unpruned = Trials(search(judge=judge, prune=False), tmp_path / "other")
    for number in range(6):
        trial = unpruned.begin(number, 1)
        assert trial is not None
        assert not trial.report(4, sign * float(number))
        unpruned.complete(trial, sign * float(number), {})


def test_optuna_reads_the_journal(tmp_path: Path) -> None:
    trials = Trials(search(), tmp_path / "journal")
    conduct(trials, range(3))
    bad = trials.begin(3, 1)
    assert bad is not None
    trials.fail(bad, "it diverged")
    study = optuna.load_study(
        study_name="search", storage=JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    )
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3 + ["FAIL"]
    assert study.best_value == min(trial.value for trial in study.trials if trial.value is not None)
    assert study.trials[3].user_attrs["reason"] == "it diverged"


@pytest.mark.parametrize("params", [{}, {"optimizer.learning_rate": 0.1}])
def test_a_trial_that_another_program_added_is_refused(tmp_path: Path, params: dict[str, float]) -> None:
    path = tmp_path / "journal"
    trials = Trials(search(), path)
    conduct(trials, [0])
    trials.close()
    before = path.read_text()
    study = optuna.load_study(study_name="search", storage=JournalStorage(JournalFileBackend(str(path))))
    study.enqueue_trial(params)
    with pytest.raises(UserError, match=f"trial 1 of {path} was added by another program: delete the lines"):
        Trials(search(), path)
    path.write_text(before)
    Trials(search(), path).close()


def test_a_trial_that_signals_ended_twice_is_known(tmp_path: Path) -> None:
    for before in (False, True):
        trials = Trials(search(), tmp_path / "journal")
        trial = trials.begin(0, 1)
        assert trial is not None
        assert trials.interrupt(trial) == before
        trials.close()


def test_a_damaged_journal_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    trials = Trials(search(), path)
    conduct(trials, [0])
    trials.close()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "no JSON\n", *lines[2:]]))
    with pytest.raises(UserError, match=r"line 2 of .*journal is damaged"):
        Trials(search(), path)
    path.write_text('{"op_code": 4}\n')
    with pytest.raises(UserError, match=r"journal is no journal of Optuna"):
        Trials(search(), path)
