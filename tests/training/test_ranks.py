"""One run over several processes has the bytes of one process, and ends in a sentence where one of them is lost."""

import os
import resource
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from tests.support import ranks
from tests.support.command import refusal, run, run_alone, sentence_of
from tests.support.once import Once
from tests.support.ranks import Rank, run_ranks, start_ranks
from tests.support.runs import CPU, few_images, recipe, without_clocks
from tfkd_fast.errors import UserError
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.precedence import Table, merge
from tfkd_fast.training.ranks import ALONE, Ranks
from tfkd_fast.training.trainer import Trainer

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name != "posix", reason="no gloo over forked processes here"
)

SMALL: dict[str, Any] = {
    "method": "tfkd-mrs",
    "epochs": 3,
    "device": "cpu",
    "precision": "fp32",
    "data": {"dataset": "digits", "batch_size": 64, "per_class": 20},
    "model": {"width": 0.125},
}
THREE = {"selection": {"candidates": 3, "interval": 1}, "controller": {"warmup_epochs": 0}}
SCALAR: Table = {"target": {"family": "scalar", "sources": []}, "selection": {"candidates": 3, "interval": 1}}

# What a candidate holds is in each of them: memory, averages, a slow network, an optimiser with two states.
RUNS: dict[str, Table] = {
    "two, shared memory": {},
    "three": merge(THREE, {"selection": {"criteria": ["averaged-top1", "holdout-nll"], "data_order": "own"}}),
    "halving": {"epochs": 4, "selection": {"budget": "halving", "candidates": 2}},
    "extended, adamw": merge(
        THREE,
        {
            "method": "tfkd-extended",
            "target": {"sources": ["memory", "slow-self"]},
            "optimizer": {"name": "adamw", "learning_rate": 0.002, "ema_decay": 0.9},
        },
    ),
    "averages": merge(SCALAR, {"selection": {"average": "all"}, "controller": {"name": "ucb"}}),
    "cooldown": merge(SCALAR, {"controller": {"name": "ppo", "cooldown_epochs": 1}}),
    "hypergradient": merge(SCALAR, {"selection": {"data_order": "own"}, "controller": {"name": "hypergradient"}}),
}
FIVE_EPOCHS = merge(SMALL, {**RUNS["three"], "epochs": 5})
FILES = ("student.safetensors", "best.safetensors", "student-ema.safetensors", "policy.safetensors")


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def assert_same_run(one: Path, other: Path) -> None:
    assert content(one) == content(other)
    assert len(content(one)) >= 2
    assert without_clocks(one) == without_clocks(other)


@pytest.mark.parametrize("name", RUNS)
def test_any_number_of_processes_has_the_bytes_of_one(tmp_path: Path, name: str) -> None:
    """Students, policies and every line of the log: selections with their values, decisions, rewards, figures."""
    tables, one = merge(SMALL, RUNS[name]), tmp_path / "one"
    assert run_ranks(1, tmp_path, partial(ranks.train, tables, one)) == [(0, "")]
    assert any(event["event"] == "selection" for event in without_clocks(one))
    for size in (2, 3) if name == "three" else (2,):
        out = tmp_path / str(size)
        assert run_ranks(size, tmp_path, partial(ranks.train, tables, out)) == [(0, "")] * size
        assert_same_run(one, out)


# Faults.


@pytest.fixture(scope="module")
def undisturbed(once: Once) -> Path:
    """The run "three", five epochs of it, by one process."""

    def train(folder: Path) -> None:
        _, file, *_ = options(FIVE_EPOCHS, folder / "run")
        assert run_ranks(1, folder, partial(ranks.train, file, folder / "run")) == [(0, "")]

    return once("ranks-undisturbed", train) / "run"


def options(tables: Table, out: Path) -> list[str]:
    """The command that trains a recipe."""
    file = out.with_suffix(".toml")
    file.write_text(tomli_w.dumps(tables))
    return ["train", str(file), "--out", str(out)]


def start_three(size: int, out: Path, *more: str) -> list[Rank]:
    """Start the run "three" of five epochs by the command."""
    command = options(FIVE_EPOCHS, out)
    return start_ranks(size, out.parent, [partial(ranks.command, *command, *more)] * size)


def tells_nothing(printed: str) -> bool:
    """Whether a rank leaves it to the others to say why the run ends; torch may warn of a connection that is gone."""
    return "error: " not in printed and "stopped: " not in printed and "Traceback" not in printed


def wait_for_epoch(folder: Path, epoch: int, started: list[Rank]) -> None:
    """Wait until a checkpoint of an epoch is there."""
    while not any(RunFolder(folder).checkpoints.glob(f"epoch-{epoch:05d}.ckpt")):
        assert all(rank.process.is_alive() for rank in started), [rank.end() for rank in started]
        time.sleep(0.002)


def assert_goes_on(out: Path, undisturbed: Path, size: int) -> None:
    """Whatever was lost, `--resume` in any number of processes ends with the bytes of the undisturbed run."""
    assert run_ranks(size, out.parent, partial(ranks.resume, out)) == [(0, "")] * size
    assert content(out) == content(undisturbed)
    assert without_clocks(out) == without_clocks(undisturbed)


@pytest.mark.parametrize(("lost", "size", "then"), [(1, 2, 3), (0, 2, 1), (1, 3, 2)])
def test_a_killed_rank_ends_the_others_with_a_sentence(
    tmp_path: Path, undisturbed: Path, lost: int, size: int, then: int
) -> None:
    started = start_three(size, tmp_path / "run")
    wait_for_epoch(tmp_path / "run", 2, started)
    started[lost].process.kill()
    ends = [rank.end() for rank in started]
    assert [code for code, _ in ends] == [-signal.SIGKILL if rank == lost else 2 for rank in range(size)], ends
    teller = 1 if lost == 0 else 0
    assert f"error: rank {lost} ended" in ends[teller][1]
    assert "Traceback" not in "".join(printed for _, printed in ends)
    assert all(tells_nothing(printed) for rank, (_, printed) in enumerate(ends) if rank not in (teller, 0))
    assert_goes_on(tmp_path / "run", undisturbed, then)


def test_ranks_that_torchrun_starts_again_go_on_with_their_run(tmp_path: Path, undisturbed: Path) -> None:
    """The command is that which began the run; without a run it begins one."""
    out = tmp_path / "run"
    command = partial(ranks.restarted_command, *options(FIVE_EPOCHS, out))
    started = start_ranks(2, tmp_path, [command] * 2)
    wait_for_epoch(out, 2, started)
    for rank in started:
        rank.process.kill()
        rank.end()
    (code, printed), other = run_ranks(2, tmp_path, command)
    assert (code, other) == (0, (0, "")), printed
    assert_same_run(out, undisturbed)


def test_a_rank_that_hangs_ends_the_others_in_time(tmp_path: Path, undisturbed: Path) -> None:
    started = start_three(2, tmp_path / "run", "--rank-timeout", "6")
    wait_for_epoch(tmp_path / "run", 2, started)
    os.kill(started[1].number(), signal.SIGSTOP)
    code, printed = started[0].end()
    started[1].process.kill()
    assert code == 2
    assert "error: rank 1 did not answer within 6 seconds" in printed
    assert_goes_on(tmp_path / "run", undisturbed, 1)


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    call = partial(ranks.command, *options(merge(SMALL, RUNS["three"]), tmp_path / "run"), "--rank-timeout", "1")
    (first,) = start_ranks(2, tmp_path, [call, None])
    (second,) = start_ranks(2, tmp_path, [None, call])
    code, printed = first.end()
    assert code == 2
    assert printed.startswith("error: rank 1 of 2 did not come within 1 seconds: start all ranks")
    code, printed = second.end()
    assert code == 2
    assert printed.splitlines()[-1].startswith("error: rank 0 did not come within 1 seconds")


def test_a_rank_that_waits_longer_than_the_first_one_names_who_did_not_come(tmp_path: Path) -> None:
    """The table in which ranks say that they are there ends with rank 0."""
    calls = [
        partial(ranks.command, *options(merge(SMALL, RUNS["three"]), tmp_path / "run"), "--rank-timeout", seconds)
        for seconds in ("2", "60")
    ]
    for code, printed in (rank.end() for rank in start_ranks(3, tmp_path, [*calls, None])):
        assert code == 2
        assert "Traceback" not in printed
        (error,) = (line for line in printed.splitlines() if line.startswith("error: "))
        assert error.startswith("error: rank 2 of 3 did not come ")


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ((), "rank 0 did not come within 2 seconds: start it, at MASTER_ADDR and MASTER_PORT"),
        ((1,), "rank 2 of 3 did not come before rank 0 fell silent: see what rank 0 printed"),
    ],
)
def test_a_first_rank_that_is_stopped_before_all_have_come_keeps_nobody(
    tmp_path: Path, others: tuple[int, ...], sentence: str
) -> None:
    call = partial(
        ranks.impatient_command, *options(merge(SMALL, RUNS["three"]), tmp_path / "run"), "--rank-timeout", "2"
    )
    first, second = start_ranks(3, tmp_path, [partial(ranks.stop_once_others_are_here, *others), call, None])
    code, printed = second.end()
    first.process.kill()
    first.end()
    assert code == 2
    assert "Traceback" not in printed
    assert f"error: {sentence}" in printed


def test_a_full_disk_of_rank_0_ends_all_of_them(tmp_path: Path, undisturbed: Path) -> None:
    started = start_three(2, tmp_path / "run")
    wait_for_epoch(tmp_path / "run", 2, started)
    log = tmp_path / "run" / "metrics.jsonl"
    limits = (log.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])  # what rank 0 prints is smaller
    resource.prlimit(started[0].number(), resource.RLIMIT_FSIZE, limits)
    (code, printed), other = (rank.end() for rank in started)
    assert (code, other[0]) == (2, 2)
    assert "error: cannot write" in printed
    assert tells_nothing(other[1])
    assert_goes_on(tmp_path / "run", undisturbed, 2)


def test_a_signal_to_one_rank_saves_the_epoch_and_ends_all(tmp_path: Path) -> None:
    """Without checkpoints on the way: the epoch that a signal waits for is saved, and all end by it."""
    tables = merge(SMALL, {**RUNS["three"], "epochs": 100_000, "checkpoint_every": 1_000_000})
    started = start_ranks(2, tmp_path, [partial(ranks.command, *options(tables, tmp_path / "run"))] * 2)
    log = tmp_path / "run" / "metrics.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < 12:  # some epochs of three candidates
        assert started[0].process.is_alive(), started[0].end()
        time.sleep(0.002)
    os.kill(started[1].number(), signal.SIGTERM)
    (code, printed), other = (rank.end() for rank in started)
    assert (code, other[0]) == (128 + signal.SIGTERM, 128 + signal.SIGTERM)
    assert tells_nothing(other[1])
    assert printed.splitlines()[-1].startswith("stopped: tfkd-fast train --resume")
    assert len(RunFolder(tmp_path / "run").checkpoint_files()) == 1


# What is refused.

DROPOUT = """
from torch import nn


def net(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, num_classes))
"""


COMPILED = replace(CPU, compile=True)


class Two(Ranks):
    """The first of two processes, as far as a run is refused before they speak to each other."""

    size = 2


@pytest.mark.parametrize(
    ("method", "tables", "sentence"),
    [
        ("tfkd-mrs", {"population": "stacked"}, "use --population sequential or streams"),
        ("dlb", {}, "2 processes would share each batch, and the loss of method dlb may need a whole one"),
        ("ce", {"data": {"mix": "mixup"}}, "images are mixed with others of their batch"),
        ("ce", {"data": {"batch_size": 1}}, "a batch has 1 image, and each of 2 processes needs one"),
        ("ce", {"compile": "on"}, "a network whose batch norm several processes synchronise is not compiled"),
        ("tfkd-mrs", {"model": {"name": "{folder}/net.py:net"}}, "draw random numbers, as dropout does"),
    ],
)
def test_what_several_processes_cannot_train_as_one_does_is_refused(
    tmp_path: Path, method: str, tables: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "net.py").write_text(DROPOUT)
    if name := tables.get("model", {}).get("name"):
        tables = {"model": {"name": name.format(folder=tmp_path)}}
    with pytest.raises(UserError, match=sentence):
        Trainer(recipe(method, **tables), few_images(), COMPILED, RunFolder(tmp_path), ranks=Two())


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--seed=1", "error: rank 1 has seed 1 and rank 0 has 0: start all ranks by the same command"),
        ("--model=nope", "error: rank 1: recipe key 'model.name': unknown model 'nope'"),
    ],
)
def test_a_rank_that_differs_is_told_of_by_the_first_one(tmp_path: Path, option: str, sentence: str) -> None:
    command = partial(ranks.command, *options(merge(SMALL, RUNS["three"]), tmp_path / "run"))
    first, second = (rank.end() for rank in start_ranks(2, tmp_path, [command, partial(command, option)]))
    assert (first[0], second[0]) == (2, 2)
    assert tells_nothing(second[1])
    assert first[1].startswith(sentence)


def test_slots_are_blocks_in_the_order_of_ranks() -> None:
    for size in range(1, 6):
        for candidates in range(1, 9):
            shares = []
            for rank in range(size):
                of_rank = Ranks()
                of_rank.rank, of_rank.size = rank, size
                shares.append(of_rank.own(candidates))
            assert [slot for share in shares for slot in share] == list(range(candidates))
            assert max(map(len, shares)) == -(-candidates // size)
    assert list(ALONE.own(3)) == [0, 1, 2]


# torchrun.


def test_devices_starts_torchrun(tmp_path: Path, undisturbed: Path) -> None:
    command = options(FIVE_EPOCHS, tmp_path / "run")
    done = run_alone(*command, "--devices", "2")
    assert done.stdout.count("test accuracy") == 1
    assert_same_run(tmp_path / "run", undisturbed)


def test_what_every_rank_refuses_is_told_once(tmp_path: Path) -> None:
    refused = run_alone(*options(merge(SMALL, {"method": "uskd"}), tmp_path / "run"), "--devices", "2", ok=False)
    assert "the loss of method uskd may need a whole one" in sentence_of(refused)


# A cluster's variables where no rank is meant.


@pytest.mark.parametrize("number", [None, "one"])
def test_a_rank_without_a_number_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str | None) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    if number is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", number)
    said = refusal("train", "digits", "--out", tmp_path / "run")
    assert f"WORLD_SIZE is above 1 and RANK is {number or ''!r}, no number: start the ranks with torchrun" in said


def test_only_train_looks_for_other_ranks_and_not_where_their_number_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "")
    few = ["--device", "cpu", "--method", "ce", "--epochs", "1", "--set", "data.per_class=10"]
    assert "report" in run("train", "digits", *few, "--set", "model.width=0.125", "--out", tmp_path / "run").stdout
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    assert "report" in run("replay", tmp_path / "run", "--out", tmp_path / "new").stdout
