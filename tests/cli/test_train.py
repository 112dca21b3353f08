"""The command on real images, as a person runs it: in a process of its own where that matters, and else in this one."""

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from tests.support.command import SMALL, command, refusal, run, run_alone, sentence_of, wait_for
from tests.support.data_files import arrays
from tests.support.runs import log, recipe, without_clocks
from tfkd_fast import api
from tfkd_fast.errors import UserError
from tfkd_fast.models import ModelSettings
from tfkd_fast.runs.checkpoint import load_checkpoint
from tfkd_fast.runs.student import load_student

MRS = ["--method", "tfkd-mrs", "--set", "selection.interval=2", "--set", "selection.candidates=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished `tfkd-mrs` run on digits, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "mrs"
    return folder, run_alone("train", "digits", *SMALL, *MRS, "--epochs", "8", "--out", folder).stdout


def test_a_run_leaves_everything_a_person_needs(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    names = {"recipe.toml", "metrics.jsonl", "summary.json", "student.safetensors", "best.safetensors", "report.html"}
    assert names <= {path.name for path in folder.iterdir()}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_top1"] > 50  # chance is 10 %
    assert summary["student_epochs"] == 2 + 6 * 2
    assert summary["epoch_rule"] == "last"
    wanted = "method dataset model seed epochs device precision loader ops parameters train_images holdout_images "
    wanted += "holdout_top1 test_top1 test_nll test_ece images_per_second seconds"
    assert set(wanted.split()) <= set(summary)


def test_the_log_shows_actions_candidates_ranks_and_the_winner(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    events = log(folder)
    decisions = [event for event in events if event["event"] == "decision"]
    selections = [event for event in events if event["event"] == "selection"]
    assert len(decisions) == 1 + 6  # the warm-up, then every epoch
    assert len(selections) == 3
    assert decisions[1]["candidates"][0]["role"] == "mean"
    for event in selections:
        assert np.shape(event["ranks"]) == (2, len(event["criteria"]))
        assert event["winner"] == event["order"][0]
    assert f"winner c{selections[-1]['winner']} of 2" in printed
    assert "plan: 8 epochs, up to 14 student-epochs, about " in printed
    assert "test accuracy" in printed


def test_eval_measures_what_training_reported(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    figures = json.loads(run("eval", folder, "--device", "cpu", "--precision", "fp32").stdout)
    assert figures["test_top1"] == summary["test_top1"]
    assert figures["test_nll"] == pytest.approx(summary["test_nll"], rel=1e-6)


def test_export_gives_the_same_logits_elsewhere(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    paths = [Path(line) for line in run("export", folder).stdout.splitlines()]
    assert [path.name for path in paths] == ["student.safetensors", "student.pt2", "student.onnx"]
    images = torch.randn(3, 1, 32, 32)
    expected = load_student(paths[0], ModelSettings(width=0.125), 10, (1, 32, 32)).eval()(images)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(paths[1]).module()(images), expected)
    (logits,) = ReferenceEvaluator(str(paths[2])).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected.detach())


def test_a_finished_run_is_not_overwritten(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = (folder / "student.safetensors").read_bytes()
    refused = run_alone("train", "digits", *SMALL, "--out", folder, ok=False)
    assert "already holds a finished run" in sentence_of(refused)
    assert "is finished" in refusal("train", "--resume", folder)
    assert (folder / "student.safetensors").read_bytes() == before


def test_killed_and_resumed_ends_with_the_same_student(finished: tuple[Path, str], tmp_path: Path) -> None:
    whole, _ = finished
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        command("train", "digits", *SMALL, *MRS, "--epochs", "8", "--out", folder), stdout=subprocess.DEVNULL
    )
    wait_for(folder / "checkpoints" / "epoch-00005.ckpt", process)  # in the middle of an interval
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "summary.json").exists()
    run("train", "--resume", folder)
    for name in ("student.safetensors", "best.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert without_clocks(folder) == without_clocks(whole)


def test_a_truncated_checkpoint_is_refused_and_the_one_before_it_serves(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command("train", "digits", *SMALL, "--method", "ce", "--epochs", "50", "--out", folder),
        stdout=subprocess.DEVNULL,
    )
    wait_for(folder / "checkpoints" / "epoch-00003.ckpt", process)
    process.kill()
    process.wait()
    older, newest = sorted((folder / "checkpoints").glob("*.ckpt"))[-2:]
    os.truncate(newest, newest.stat().st_size // 2)
    assert f"{newest} is truncated or damaged" in refusal("train", "--resume", folder)
    assert load_checkpoint(older)["state"]["epoch"] >= 1


def test_interrupted_it_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command("train", "digits", *SMALL, "--method", "ce", "--epochs", "50", "--out", folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_for(folder / "checkpoints" / "epoch-00001.ckpt", process)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate()
    assert process.returncode == 130
    assert message.decode() == f"stopped: tfkd-fast train --resume {folder} goes on from the last checkpoint\n"


def test_a_run_that_was_killed_before_its_report_gets_it(tmp_path: Path) -> None:
    api.train(recipe("ce", epochs=1), tmp_path)  # which writes none
    before = (tmp_path / "metrics.jsonl").read_bytes()
    printed = run("train", "--resume", tmp_path).stdout
    assert "is finished; its report was missing and is written now" in printed
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert "is finished" in refusal("train", "--resume", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "tfdk"], "unknown method 'tfdk': did you mean 'tfkd'?"),
        (["--model", "vgg9"], "unknown model 'vgg9': did you mean 'vgg19'?"),
        (["--dataset", "cifar11"], "cifar1"),
        (["--dataset", "cifar10", "--data-root", "nowhere"], "--download"),
        (["--dataset", "npz", "--data-root", "nothing.npz"], "nothing.npz"),
        (["--set", "optimizer.lr=1"], "unknown recipe key 'optimizer.lr'"),
        (["--device", "cuda"], "--device cpu"),
        (["--set", "data=5"], "recipe key 'data'"),
        (["--set", "data.dataset=[1]"], "recipe key 'data.dataset'"),
        (["--set", "method=5"], "unknown method 5"),
        (["--set", "options.x=5"], "unknown recipe key 'options'"),
        (["--set", "seed=" + "1" * 5000], "recipe key 'seed'"),
        (["--set", "model.width=" + "[" * 5000], "recipe key 'model.width'"),
        (["--batch-size", str(2**63)], "less than or equal to 65536"),
        (["--set", f"epochs={10**400}"], "less than or equal to 1000000"),
        (["--set", "optimizer.learning_rate=inf"], "finite number"),
        (["--set", "data.workers=1000000"], "less than or equal to 256"),
        (["x" * 300], "no recipe file 'xxx"),
        (["--method", "ps-kd", "--set", "data.mix=mixup"], "of single images: set data.mix to none"),
        (["--method", "tfkd", "--set", "data.mix=mixup"], "set data.mix to none, or target.sources=[]"),
        (["--method", "tfkd-extended", "--set", "data.mix=cutmix"], "of single images: set data.mix to none"),
        (
            ["--method", "tfkd-extended", "--set", "target.family=scalar", "--set", "data.mix=cutmix"],
            'or target.sources=["peers", "slow-self"]',
        ),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    out = tmp_path / "run"
    assert sentence in refusal("train", *arguments, "--out", out)
    assert not out.exists()


def test_a_command_that_does_not_exist_is_one_sentence() -> None:
    assert "no command 'test': tfkd-fast eval tests a finished run again" in refusal("test", "runs/a")
    assert "no command 'trian': did you mean 'train'?" in refusal("trian")


def test_a_recipe_that_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b'method = "ce"  # caf\xe9')
    assert "recipe.toml is no UTF-8 text" in refusal("train", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    assert "File name too long" in refusal("train", "digits", *SMALL, "--out", tmp_path / ("x" * 300))


def test_a_model_that_there_is_not_cannot_be_measured() -> None:
    assert "unknown model 'nope'" in refusal("bench", "--model", "nope")


def test_what_cannot_be_tested_is_refused_before_training(tmp_path: Path) -> None:
    content = arrays()
    content["test_labels"][-1] = 3
    np.savez(tmp_path / "data.npz", **content)
    data = {"dataset": "npz", "root": str(tmp_path / "data.npz"), "holdout": 0}
    with pytest.raises(UserError, match=r"array test_labels in .* must be 0 .. 2, holds 3"):
        api.train({"method": "ce", "data": data, "model": {"width": 0.125}}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_eval_of_no_run_is_refused(tmp_path: Path) -> None:
    assert "is no run folder" in refusal("eval", tmp_path)
    assert "is no run folder" in refusal("report", tmp_path)


def test_doctor_lists_every_operator_and_says_why_a_backend_is_refused() -> None:
    text = run_alone("doctor").stdout  # in this process tests have changed what serves
    for operator in ("soft_target_loss", "rank_binned_targets", "candidate_metrics", "rank_candidates"):
        assert operator in text
    assert "chosen" in text
    assert "refused" in text


def test_a_file_for_figures_is_refused_before_they_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "figures.json"
    assert f"there is no folder {out.parent}" in refusal("bench", "--device", "cpu", "--out", out)
    assert f"{tmp_path}: it is a folder" in refusal("bench", "--device", "cpu", "--out", tmp_path)
