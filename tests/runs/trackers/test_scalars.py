"""Curves are those of the log, for every kind of event that has numbers."""

import json
import math
from pathlib import Path

import pytest

from tests.runs.trackers.curves import of_log
from tfkd_fast.events import EpochEnded
from tfkd_fast.runs.log import read_log
from tfkd_fast.runs.trackers.scalars import Curves

RUNS = sorted((Path(__file__).parents[2] / "old_runs").iterdir())


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_curves_of_a_run_are_the_numbers_of_its_log(run: Path) -> None:
    curves, found = Curves(), {}
    for line in read_log(run / "metrics.jsonl"):
        for point in curves.points(line.event) if line.event else []:
            found.setdefault(point.name, {})[point.epoch] = point.value
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found == of_log(lines)
    assert {"train_loss/candidate_0", "holdout_top1/candidate_0", "test_top1"} <= found.keys()


def test_numbers_that_are_not_known_have_no_point_and_names_are_plain() -> None:
    event = EpochEnded(
        epoch=3,
        candidate=1,
        learning_rate=0.1,
        train_loss=2.5,
        terms={"soft {τ=4}": 1.5, "hard": math.nan},
        train_top1=50.0,
        images_per_second=math.inf,
        holdout=None,
    )
    found = {point.name: point for point in Curves().points(event)}
    assert found["loss_soft _τ_4_/candidate_1"] == ("loss_soft _τ_4_/candidate_1", 1.5, 3)
    assert not {name for name in found if name.startswith(("loss_hard", "images_per_second", "holdout"))}
