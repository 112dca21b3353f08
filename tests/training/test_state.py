"""Where a run stands, as a checkpoint keeps it."""

from dataclasses import fields
from pathlib import Path

import pytest

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Interval
from tfkd_fast.runs.checkpoint import load_checkpoint, save_checkpoint
from tfkd_fast.training.state import RunState

STATE = RunState(
    epoch=3,
    interval=Interval(2, 4, 2),
    diverged=(1,),
    alive=2,
    student_epochs=7,
    images_trained=12_345,
    best_epoch=2,
    best_top1=0.625,
    seconds={"training": 1.5, "saving": 0.25},
    elapsed=2.75,
    log_bytes=6789,
)


@pytest.mark.parametrize("state", [RunState(), STATE], ids=["new", "within an interval"])
def test_a_state_comes_back_as_it_went(state: RunState, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "state.ckpt", state.state_dict())
    assert RunState.from_state_dict(load_checkpoint(tmp_path / "state.ckpt")) == state


def test_nothing_is_left_out() -> None:
    """Every field of the second state differs from that of a new run, so that the test above sees it."""
    assert all(getattr(STATE, field.name) != getattr(RunState(), field.name) for field in fields(RunState))
    assert STATE.state_dict().keys() == {field.name for field in fields(RunState)}


def test_a_checkpoint_of_an_older_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "epoch-00001.ckpt"
    path.write_bytes(b"tfkd_fast checkpoint 1\n" + bytes(100))
    with pytest.raises(
        UserError, match=r"epoch-00001.ckpt was written by an older version .* train it anew"
    ) as refused:
        load_checkpoint(path)
    assert "\n" not in str(refused.value)
