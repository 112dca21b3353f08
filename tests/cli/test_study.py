"""Studies and replays, as a person runs them: the runs of a study are processes of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.command import children, command, refusal, run, wait_for
from tests.support.pages import Page
from tests.support.runs import log, without_clocks
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.lock import refuse_if_busy
from tfkd_fast.study.executors import local as local_processes

HEAD = """
seeds = [0, 1]
baseline = "ce"
[base]
epochs = 1
device = "cpu"
precision = "fp32"
data.batch_size = 128
data.loader = "resident"
model.width = 0.125
"""
CE = """
[rows.ce]
title = "cross-entropy"
method = "ce"
"""
KD = """
[rows.kd]
method = "kd"
teachers.runs = ["row:ce"]
"""
SMOOTHED = """
[rows.smoothed]
method = "label-smoothing"
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text)
    return file


def runs_of(study: int) -> list[int]:
    """The processes of a study's runs, which are forked from the only one that it starts."""
    (warm,) = children(study)
    return children(warm)


def students(out: Path) -> dict[str, int]:
    """Run -> when its student was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/student.safetensors")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A study of two rows and two seeds, its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("study")
    study, out = write(folder, HEAD + CE + SMOOTHED), folder / "out"
    return study, out, run("study", study, "--out", out, "--jobs", "2").stdout


def test_every_row_is_trained_under_every_seed(finished: tuple[Path, Path, str]) -> None:
    _, out, printed = finished
    assert students(out).keys() == {"ce-seed0", "ce-seed1", "smoothed-seed0", "smoothed-seed1"}
    for row in ("ce", "smoothed"):
        for seed in (0, 1):
            summary = json.loads((out / "runs" / f"{row}-seed{seed}" / "summary.json").read_text())
            assert (summary["seed"], summary["epochs"]) == (seed, 1)
            title = "cross-entropy" if row == "ce" else row
            assert f"seed {seed} · {title} · test {summary['test_top1']:.2f} %" in printed


def test_the_table_is_made_of_the_summaries(finished: tuple[Path, Path, str]) -> None:
    _, out, printed = finished
    results = json.loads((out / "results.json").read_text())
    top1 = {(found["row"], found["seed"]): found["summary"]["test_top1"] for found in results["runs"]}
    values = [top1["smoothed", seed] for seed in (0, 1)]
    for name, seed in top1:
        assert top1[name, seed] == json.loads((out / f"runs/{name}-seed{seed}/summary.json").read_text())["test_top1"]
    ours = results["table"][1]
    assert (ours["row"], ours["seeds"]) == ("smoothed", [0, 1])
    assert ours["test_top1"]["mean"] == pytest.approx(np.mean(values))
    assert ours["test_top1"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert ours["difference"]["mean"] == pytest.approx(np.mean(values) - np.mean([top1["ce", 0], top1["ce", 1]]))
    (row,) = (line for line in (out / "table.md").read_text().splitlines() if line.startswith("| smoothed | 2/2 | "))
    assert " | 1 | " in row  # student-epochs
    assert "paired by seed" in printed


def test_elsewhere_than_on_a_terminal_a_few_lines_say_how_far_it_is(finished: tuple[Path, Path, str]) -> None:
    _, _, printed = finished
    lines = printed.splitlines()
    assert lines[1] == "plan: 4 runs, 4 epochs; the time is measured in the first epochs"
    ended = [line for line in lines if line.startswith("seed ")]
    assert [line.rpartition(" · ")[2].partition(",")[0] for line in ended] == [
        f"{n} of 4 runs ended" for n in range(1, 5)
    ]
    before_table = lines[: lines.index(ended[-1])]
    assert len(before_table) <= 2 + 4 + 1 + 10


def test_given_again_it_trains_nothing_and_prints_the_table(finished: tuple[Path, Path, str]) -> None:
    study, out, _ = finished
    before = students(out)
    again = run("study", study, "--out", out).stdout
    assert "4 runs are finished, 0 to train" in again
    assert "smoothed" in again
    assert students(out) == before


def test_its_page_leads_to_its_runs(finished: tuple[Path, Path, str]) -> None:
    _, out, printed = finished
    page = Page((out / "study.html").read_text())
    assert {target for target in page.targets if target.endswith(".html")} == {
        f"runs/{row}-seed{seed}/report.html" for row in ("ce", "smoothed") for seed in (0, 1)
    }
    assert "refresh" not in page.text
    assert "Held-out accuracy" in page.titles
    assert f"page {out / 'study.html'}" in printed


def test_compare_prints_the_table_of_the_study_for_its_runs(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    """In 80 columns, and as JSON and CSV."""
    _, out, printed = finished
    runs = sorted((out / "runs").iterdir())
    compared = run("compare", *runs, "--out", tmp_path / "beside").stdout
    table = compared.split("Seeds: ")[0]
    assert table in printed
    assert max(map(len, table.splitlines()[2:])) <= 80
    stored = json.loads((out / "results.json").read_text())
    assert json.loads((tmp_path / "beside" / "results.json").read_text())["table"] == stored["table"]
    assert json.loads(run("compare", out, "--format", "json").stdout)["table"] == stored["table"]
    assert run("compare", *runs, "--format", "csv").stdout == (out / "table.csv").read_text()
    links = Page((tmp_path / "beside" / "study.html").read_text()).targets
    assert {(tmp_path / "beside" / link).resolve() for link in links if link.endswith(".html")} == {
        path / "report.html" for path in runs
    }


def test_compare_refuses_in_a_sentence(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, out, _ = finished
    assert "has neither recipe.toml nor results.json" in refusal("compare", tmp_path)
    assert "choose another --out" in refusal("compare", out, "--out", out)
    assert "there is no row 'nobody'" in refusal("compare", out, "--baseline", "nobody")


def test_a_run_by_another_recipe_is_not_mixed_in(finished: tuple[Path, Path, str]) -> None:
    study, out, _ = finished
    sentence = refusal("study", study, "--out", out, "--set", "optimizer.learning_rate=0.01")
    assert str(out / "runs" / "ce-seed0") in sentence
    assert "another --out" in sentence


def test_what_was_deleted_or_renamed_in_a_study_is_one_sentence(
    finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    study, whole, _ = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "notes.txt").write_text("mine")
    for part in ("logs", "recipes"):
        shutil.rmtree(out / part)
    assert "4 runs are finished, 0 to train" in run("study", study, "--out", out).stdout
    renamed = write(tmp_path, study.read_text().replace("[rows.smoothed]", "[rows.other]"))
    printed = run("study", renamed, "--out", out, "--rows", "ce").stdout
    assert "in no row of this study, and left as they are: smoothed-seed0, smoothed-seed1" in printed
    assert students(out).keys() == students(whole).keys()
    (out / "runs" / "ce-seed0" / "recipe.toml").unlink()
    assert f"{out}/runs/ce-seed0 lacks its recipe.toml: restore it" in refusal("study", study, "--out", out)
    shutil.rmtree(out / "runs")
    (out / "results.json").write_text('{"results": 1}')
    assert "holds nothing of tfkd-fast" in refusal("study", study, "--out", out)


def test_a_shared_row_is_trained_once_for_the_runs_under_every_seed(tmp_path: Path) -> None:
    teacher = '[rows.teacher]\nmethod = "ce"\nshared = true\ncompared = false\n'
    text = HEAD.replace('"ce"', '"kd"', 1) + KD.replace("row:ce", "row:teacher") + teacher
    study, out = write(tmp_path, text), tmp_path / "out"
    printed = run("study", study, "--out", out, "--jobs", "2", "--seeds", "1", "--seeds", "7").stdout
    assert "3 runs" in printed
    assert students(out).keys() == {"teacher-seed0", "kd-seed1", "kd-seed7"}
    for seed in (1, 7):
        taught = tomllib.loads((out / "runs" / f"kd-seed{seed}" / "recipe.toml").read_text())
        assert taught["teachers"]["runs"] == [str((out / "runs" / "teacher-seed0").resolve())]
    lines = (out / "table.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines if line.startswith(("| kd |", "| teacher |"))] == ["2/3", "1/1"]
    assert "3 runs are finished, 0 to train" in run("study", study, "--out", out, "--seeds", "1", "--seeds", "7").stdout


def test_a_run_that_fails_leaves_the_others_whole(tmp_path: Path) -> None:
    """And a replay and a student wait for the run that they need, wherever the file names it."""
    text = KD + '[rows.again]\nreplay = "ce"\n[rows.bad]\nmethod = "ce"\noptimizer.learning_rate = 1e9\n'
    study = write(tmp_path, HEAD.replace("[0, 1]", "[0]") + text + CE + '[rows.worse]\nreplay = "bad"\n')
    out = tmp_path / "out"
    result = run("study", study, "--out", out, "--jobs", "2", ok=False)
    assert result.returncode == 1, result.stdout + result.stderr
    assert students(out).keys() == {"again-seed0", "ce-seed0", "kd-seed0"}
    assert json.loads((out / "runs" / "kd-seed0" / "summary.json").read_text())["teachers"] == ["ce-seed0"]
    assert json.loads((out / "runs" / "again-seed0" / "summary.json").read_text())["holdout_images"] == 0
    page = (out / "table.md").read_text()
    assert "lower optimizer.learning_rate" in page.split("Missing: bad-seed0: ")[1]
    assert "it needs bad-seed0" in page.split("Missing: worse-seed0: ")[1]
    assert "missing: bad-seed0" in result.stdout
    again = run("study", study, "--out", out, "--rows", "ce")  # nothing of this row failed
    assert "missing: bad-seed0" in again.stdout
    assert "Missing: bad-seed0: the loss became" in (out / "table.md").read_text()


def test_a_killed_run_goes_on_when_the_study_is_given_again(tmp_path: Path) -> None:
    study = write(tmp_path, HEAD.replace("[0, 1]", "[0]").replace("epochs = 1", "epochs = 8") + CE)
    out = tmp_path / "out"
    process = subprocess.Popen(command("study", study, "--out", out), stdout=subprocess.DEVNULL)
    wait_for(out / "runs" / "ce-seed0" / "checkpoints" / "epoch-00001.ckpt", process)
    (child,) = runs_of(process.pid)
    os.kill(child, signal.SIGKILL)
    assert process.wait() == 1
    assert "ce-seed0: ended by SIGKILL" in (out / "table.md").read_text()
    run("study", study, "--out", out)
    assert [event["event"] for event in log(out / "runs" / "ce-seed0")].count("resume") == 1
    assert "Missing" not in (out / "table.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, None])
def test_when_a_study_ends_its_runs_end_with_what_they_have_trained(tmp_path: Path, number: int | None) -> None:
    """However it ends: it asks them, or else they notice; also if the process is killed that they are forked from."""
    head = HEAD.replace("epochs = 1", "epochs = 500\ncheckpoint_every = 500")
    study, out = write(tmp_path, head + CE), tmp_path / "out"
    runs = [out / "runs" / f"ce-seed{seed}" for seed in (0, 1)]
    process = subprocess.Popen(
        command("study", study, "--out", out, "--jobs", "2"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        for folder in runs:
            wait_for(folder / "metrics.jsonl", process)
            while '"epoch"' not in (folder / "metrics.jsonl").read_text():
                assert process.poll() is None
                time.sleep(0.01)
        assert f"another tfkd-fast is at work in {out}" in refusal("study", study, "--out", out)
        started = runs_of(process.pid)
        assert len(started) == 2
        # Ctrl-C passes a group by; `nice` holds for a session where Linux shares a processor out by them.
        assert [os.getpgid(pid) for pid in started] == started
        assert {os.getsid(pid) for pid in started} == {os.getsid(process.pid)}
        (warm,) = children(process.pid)
    finally:
        if number is None:
            os.kill(warm, signal.SIGKILL)
        else:
            process.send_signal(number)
    _, message = process.communicate()
    if number != signal.SIGINT:
        wait_until_ended([warm, *started])
    if number is None:
        assert process.returncode == 1
        assert "ce-seed1: ended by SIGKILL" in (out / "table.md").read_text()
    if number == signal.SIGINT:
        assert process.returncode == 128 + number
        assert message.decode() == "stopped: the same command again goes on from the last checkpoints\n"
    assert not any(Path("/proc", str(pid)).exists() for pid in started)
    refuse_if_busy(out)
    for folder in runs:
        last = max(event["epoch"] for event in log(folder) if event["event"] == "epoch")
        assert [path.name for path in RunFolder(folder).checkpoint_files()] == [f"epoch-{last:05d}.ckpt"]


@pytest.mark.skipif(sys.platform != "linux", reason="runs are not forked here")
def test_a_forked_run_has_the_bits_of_a_command_of_its_own(
    finished: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where there is no fork a study starts such commands, here those of one row and seed."""
    study, out, _ = finished
    monkeypatch.setattr(local_processes, "sys", SimpleNamespace(platform="elsewhere", executable=sys.executable))
    run("study", study, "--out", tmp_path, "--jobs", "2", "--seeds", "1", "--rows", "smoothed")
    assert students(tmp_path).keys() == {"smoothed-seed1"}
    forked, alone = (folder / "runs" / "smoothed-seed1" for folder in (out, tmp_path))
    for name in ("student.safetensors", "best.safetensors"):
        assert (forked / name).read_bytes() == (alone / name).read_bytes()
    assert without_clocks(forked) == without_clocks(alone)


def wait_until_ended(processes: list[int], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while any(Path("/proc", str(pid)).exists() for pid in processes):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_replay_trains_on_all_images(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, study_folder, _ = finished
    source, out = study_folder / "runs" / "smoothed-seed0", tmp_path / "replay"
    printed = run("replay", source, "--out", out, "--seed", "5").stdout
    assert "test accuracy" in printed
    before, after = (json.loads((folder / "summary.json").read_text()) for folder in (source, out))
    assert after["train_images"] == before["train_images"] + before["holdout_images"]
    assert (after["seed"], after["method"], after["holdout_images"]) == (5, "label-smoothing", 0)
    assert (out / "report.html").is_file()
