"""Searches, as a person runs them: trials are processes of their own, and the test images stay sealed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.command import command, refusal, run, wait_for
from tests.support.runs import log
from tfkd_fast.errors import UserError
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.lock import refuse_if_busy
from tfkd_fast.runs.recipe import load_recipe, read_recipe

RECIPE = """
method = "label-smoothing"
epochs = 2
device = "cpu"
precision = "fp32"
data.dataset = "folder"
data.loader = "resident"
data.batch_size = 8
data.holdout = 0.25
data.augment = false
model.width = 0.125
[search]
random_trials = 2
[search.ranges]
optimizer.learning_rate = { choices = [0.05, 0.2, 1e9] }
optimizer.momentum = { float = [0.5, 0.95] }
"""
TRIALS = 5


def write_images(root: Path) -> None:
    """Two classes of bright and dark noise; no test image can be decoded."""
    random = np.random.default_rng(0)
    for label, shift in (("bright", 96), ("dark", 0)):
        for part, count in (("train", 16), ("test", 2)):
            folder = root / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 160, (32, 32, 3), dtype=np.uint8) + np.uint8(shift)
                Image.fromarray(pixels).save(folder / f"{number}.png")
                if part == "test":
                    (folder / f"{number}.png").write_bytes(b"sealed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, str]:
    """What names a search of two at a time, its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("search")
    write_images(folder / "images")
    (folder / "recipe.toml").write_text(RECIPE)
    search = ["search", str(folder / "recipe.toml"), "--data-root", str(folder / "images"), "--jobs", "2"]
    search += ["--set", "data.image_size=32"]
    return search, folder / "out", run(*search, "--out", folder / "out", "--trials", str(TRIALS)).stdout


def wait_until_free(out: Path, seconds: float = 60) -> None:
    """Until the trials of a search that was killed have ended, which notice it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return refuse_if_busy(out)
        except UserError:
            assert time.monotonic() < deadline


def trials(out: Path) -> list[dict[str, object]]:
    found = json.loads((out / "trials.json").read_text())["trials"]
    assert isinstance(found, list)
    return [{key: value for key, value in trial.items() if key != "reason"} for trial in found]


def test_trials_are_judged_by_held_out_images_and_the_test_images_stay_sealed(
    whole: tuple[list[str], Path, str],
) -> None:
    """They cannot be decoded, so that a run that is tested refuses them."""
    _, out, printed = whole
    found = trials(out)
    states = [trial["state"] for trial in found]
    assert len(states) == TRIALS
    assert {"finished", "failed"} == set(states)
    for trial in found:
        folder = out / "trials" / str(trial["number"])
        recipe = read_recipe(RunFolder(folder))
        assert recipe.optimizer.learning_rate == trial["values"]["optimizer.learning_rate"]
        assert (trial["state"] == "failed") == (recipe.optimizer.learning_rate == 1e9)
        if trial["state"] == "finished":
            summary = json.loads((folder / "summary.json").read_text())
            assert trial["judgement"] == trial["holdout_calibrated_nll"] == summary["holdout_calibrated_nll"]
            last = log(folder)[-1]
            for stored in (summary, last):
                assert not [name for name, value in stored.items() if "test" in name and value]
            assert not [event for event in log(folder) if event["event"] == "test"]
    best = min((trial for trial in found if trial["state"] == "finished"), key=lambda trial: trial["judgement"])
    assert f"is trial {best['number']}, held-out calibrated NLL {best['judgement']:.4f}" in printed
    assert f"{TRIALS} of {TRIALS} trials ended" in printed
    recipe = load_recipe(str(out / "best.toml"))
    assert recipe.optimizer.learning_rate == best["values"]["optimizer.learning_rate"]
    assert recipe.test
    assert f"{out.parent}/images/test/bright/0.png is damaged" in refusal(
        "train", out / "best.toml", "--out", out / "trained"
    )
    assert (out / "search.html").read_text().count("<svg") == 4


def test_a_search_that_was_killed_goes_on_to_the_same_trials(
    whole: tuple[list[str], Path, str], tmp_path: Path
) -> None:
    search, out, _ = whole
    killed = tmp_path / "out"
    arguments = command(*search, "--out", killed, "--trials", str(TRIALS))
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(killed / "trials" / "2" / "metrics.jsonl", process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    wait_until_free(killed)
    again = run(*search, "--out", killed, "--trials", str(TRIALS)).stdout
    assert f"{TRIALS} of {TRIALS} trials ended" in again
    assert trials(killed) == trials(out)
    assert (killed / "best.toml").read_text() == (out / "best.toml").read_text()


def test_given_again_it_trains_what_is_left(whole: tuple[list[str], Path, str]) -> None:
    search, out, _ = whole
    before = trials(out)
    fewer = run(*search, "--out", out, "--trials", "2").stdout
    assert f"{TRIALS} trials have ended, 0 to train" in fewer
    assert "more than the 2 of --trials" in fewer
    more = run(*search, "--out", out, "--trials", str(TRIALS + 1)).stdout
    assert f"{TRIALS} trials have ended, 1 to train" in more
    assert trials(out)[:TRIALS] == before
    assert len(trials(out)) == TRIALS + 1


def test_another_search_or_a_foreign_folder_is_refused(whole: tuple[list[str], Path, str], tmp_path: Path) -> None:
    search, out, _ = whole
    again = [*search, "--trials", "9", "--out"]
    assert "holds a search with another epochs" in refusal(*again, out, "--set", "epochs=3")
    changed = tmp_path / "recipe.toml"
    changed.write_text(RECIPE.replace("0.95", "0.9"))
    sentence = refusal("search", changed, *again[2:], out)
    assert "holds a search with another ranges.optimizer.momentum.float: choose another --out" in sentence
    (tmp_path / "mine.txt").write_text("mine")
    assert "holds nothing of tfkd-fast" in refusal(*again, tmp_path)
    assert "is a file: choose another --out" in refusal(*again, tmp_path / "mine.txt")
    assert "run it with tfkd-fast search" in refusal("train", search[1])


def test_what_no_trial_can_do_is_one_sentence_and_costs_no_trial(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.replace('"folder"', '"digits"').replace('"label-smoothing"', '"kd"')
    recipe.write_text(text + "[teachers]\nruns = ['none']")
    sentence = refusal("search", recipe, "--trials", "3", "--jobs", "1", "--out", tmp_path / "out")
    assert "trial 0 is not finished: " in sentence
    assert "none" in sentence
    assert trials(tmp_path / "out") == []


def test_without_optuna_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'tfkd-fast[search]'" in refusal("search", "digits", "--trials", "3")
