"""Trackers are told what the log has, in one run for one run here, also over a break; and what happens without one."""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import get_args

import pytest

from tests.runs.trackers.curves import READERS, of_log
from tests.support.command import SMALL, refusal
from tests.support.runs import log, recipe
from tfkd_fast import api
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.events import EpochEnded, Event
from tfkd_fast.runs.log import Listener
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.runs.trackers import TRACKERS, TrackerName

INSTALLED = [name for name in TRACKERS if importlib.util.find_spec(TRACKERS[name].package)]


class Break(Listener):
    """Ends a run in its third epoch, whose first candidate the trackers were told of by then."""

    def event(self, event: Event) -> None:
        if isinstance(event, EpochEnded) and (event.epoch, event.candidate) == (3, 1):
            raise InterruptedError


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was broken and went on, with all trackers that are installed."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("MLFLOW_TRACKING_URI", (folder / "store").as_uri())
        few = {"dataset": "digits", "per_class": 10, "batch_size": 32}
        steered = recipe("tfkd-mrs", epochs=4, trackers=INSTALLED, data=few, selection={"candidates": 2, "interval": 1})
        with pytest.raises(InterruptedError):
            api.train(steered, folder / "run", listeners=[Break()])
        api.resume(folder / "run")
        yield folder / "run"


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_has_the_numbers_of_the_log(tracked: Path, name: TrackerName) -> None:
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed: pip install 'tfkd-fast[{TRACKERS[name].extra}]'")
    found, expected = READERS[name](tracked), of_log(log(tracked))
    assert found.keys() == expected.keys()
    for curve, points in expected.items():
        assert found[curve] == pytest.approx(points, rel=1e-6), curve  # TensorBoard keeps float32
    assert list(found["holdout_top1/candidate_0"]) == [1, 2, 3, 4]


def test_every_tracker_has_a_name() -> None:
    assert tuple(TRACKERS) == get_args(TrackerName)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: TrackerName
) -> None:
    tracker = TRACKERS[name]
    monkeypatch.setattr(tracker, "package", "no_such_package")
    said = refusal("train", *SMALL, "--set", f'trackers=["{name}"]', "--out", tmp_path / "run")
    assert f"a tracker that is not installed, {tracker.title}: pip install 'tfkd-fast[{tracker.extra}]'" in said
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_begin_stops_the_run_and_one_that_fails_later_does_not(tmp_path: Path) -> None:
    few = {"dataset": "digits", "per_class": 4, "batch_size": 32}
    wanted = recipe("ce", data=few, trackers=["tensorboard"])
    blocked = tmp_path / "blocked"

    class Blocks(Listener):
        def event(self, event: Event) -> None:
            (blocked / "tensorboard").touch()

    with pytest.raises(UserError, match=r"TensorBoard cannot begin \(.*--resume .*blocked"):
        api.train(wanted, blocked, listeners=[Blocks()])
    (blocked / "tensorboard").unlink()

    class Fails(TRACKERS["tensorboard"]):  # type: ignore[misc, valid-type]
        def write(self, points: object) -> None:
            raise OSError("no space\nleft")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api.resume(blocked)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(TRACKERS, "tensorboard", Fails)
            assert api.train(wanted, tmp_path / "lost")["test_top1"] > 0
    (notice,) = [str(each.message) for each in caught if issubclass(each.category, Notice)]
    assert notice == ("TensorBoard failed and is told nothing more (no space left); the log of the run has everything")


def test_a_tracker_that_cannot_begin_costs_no_run_that_was_there(tmp_path: Path) -> None:
    few = {"dataset": "digits", "per_class": 4, "batch_size": 32}
    api.train(recipe("ce", epochs=1, data=few), tmp_path / "run")
    student = (tmp_path / "run" / "student.safetensors").read_bytes()
    (tmp_path / "run" / "tensorboard").touch()
    again = recipe("ce", epochs=1, seed=1, data=few, trackers=["tensorboard"])
    kept = tmp_path / "run" / "replaced-run"
    with (
        pytest.raises(UserError, match="TensorBoard cannot begin"),
        pytest.warns(Notice, match=f"was in {tmp_path / 'run'} is kept in {kept} until the new one has its first"),
    ):
        api.train(again, tmp_path / "run", overwrite=True)
    assert (kept / "student.safetensors").read_bytes() == student
    assert api.evaluate(kept)["test_images"] > 0
    (tmp_path / "run" / "tensorboard").unlink()
    api.resume(tmp_path / "run")
    assert not kept.exists()


def test_the_old_key_names_the_same_trackers() -> None:
    plain = {"method": "ce", "data": {"dataset": "digits"}}
    for table, overrides, trackers in (
        ({"tensorboard": True}, {}, ("tensorboard",)),
        ({"tensorboard": False}, {}, ()),
        ({}, {"tensorboard": True}, ("tensorboard",)),
        ({"tensorboard": True}, {"trackers": ["mlflow"]}, ("mlflow",)),
        ({"trackers": ["wandb"]}, {"tensorboard": False}, ()),
        ({"tensorboard": True, "trackers": ["wandb", "tensorboard"]}, {}, ("wandb", "tensorboard")),
    ):
        made = make_recipe(plain | table, overrides)
        assert made.trackers == trackers
        assert "tensorboard" not in made.table()
    for table, words in (
        ({"tensorboard": False, "trackers": ["tensorboard"]}, "'tensorboard' is the old form of trackers"),
        ({"tensorboard": True, "trackers": []}, "'tensorboard' is the old form of trackers"),
        ({"tensorboard": "yes"}, "unknown recipe key 'tensorboard'"),
        ({"trackers": ["comet"]}, r"'trackers.0': Input should be 'tensorboard', 'wandb' or 'mlflow'"),
        ({"trackers": "wandb"}, "'trackers': Input should be a valid tuple"),
        ({"trackers": ["wandb", "wandb"]}, "'wandb' is named twice"),
    ):
        with pytest.raises(UserError, match=words):
            make_recipe(plain | table)


def test_what_a_run_is_called_in_trackers_is_in_its_folder(tracked: Path) -> None:
    known = json.loads((tracked / "trackers.json").read_text()) if (tracked / "trackers.json").exists() else {}
    assert known.keys() - {"sha256"} == {*INSTALLED} - {"tensorboard"}
