"""Runs inside one process: what training may read, what it refuses, and what listeners see."""

import contextlib
import gc
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tfkd_fast
from tests.support.runs import CPU, few_images, log, recipe, trainer, without_clocks
from tests.support.tables import LEARNED
from tfkd_fast import api
from tfkd_fast.data import Dataset, ImageSet, loaders, make_loader, missing_loaders, open_dataset, split_holdout
from tfkd_fast.errors import UserError
from tfkd_fast.events import EpochEnded, Event, RunFinished
from tfkd_fast.judging.metrics import holdout_metrics
from tfkd_fast.methods.base import AverageResult, IntervalResult, JudgeAverage, Outcome, SteeredMethod
from tfkd_fast.report import write_report
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import Listener
from tfkd_fast.runs.precedence import merge
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.runs.student import read_student
from tfkd_fast.training.trainer import Trainer


@pytest.mark.parametrize("method", ["ce", "tfkd", "tfkd-mrs"])
def test_training_never_reads_the_test_images(tmp_path: Path, method: str) -> None:
    digits = open_dataset(recipe(method).data)

    def read_test() -> ImageSet:
        raise AssertionError("the test images were read")

    guarded = Dataset(
        "digits", digits.classes, digits.image_shape, flip=False, read_train=digits.read_train, read_test=read_test
    )
    summary = trainer(recipe(method), tmp_path, guarded).run()
    assert summary["student_epochs"] == {"ce": 2, "tfkd": 2, "tfkd-mrs": 4}[method]
    with pytest.raises(AssertionError, match="the test images were read"):
        guarded.read_test()


def test_held_out_images_are_not_trained_on(tmp_path: Path) -> None:
    run = trainer(recipe("ce"), tmp_path)
    seen = torch.cat([batch.indices for batch in run.parts.loader.epoch(0)])
    assert sorted(seen.tolist()) == list(range(run.parts.images.num_fit))
    assert run.parts.images.num_fit + run.parts.images.num_holdout == len(run.dataset.read_train())


def test_without_a_held_out_split_ce_trains_on_everything(tmp_path: Path) -> None:
    run = trainer(recipe("ce", data={"holdout": 0}), tmp_path)
    summary = run.run()
    assert (summary["train_images"], summary["holdout_images"]) == (len(run.dataset.read_train()), 0)
    assert summary["best_epoch"] is None
    assert all(event["holdout"] is None for event in log(tmp_path) if event["event"] == "epoch")


@pytest.mark.parametrize(("method", "candidates"), [("tfkd", 1), ("tfkd-mrs", 2)])
def test_the_best_student_is_that_of_the_best_figure_in_the_log(tmp_path: Path, method: str, candidates: int) -> None:
    """Of whatever epoch, also within an interval, and of whatever candidate, also of one that is left behind."""
    every = {"interval": 3} if candidates == 1 else {}
    selection = {"candidates": candidates, "interval": 3} if candidates > 1 else {}
    tables = {"controller": {"name": "ppo", **every}, "selection": selection, "target": {"sources": []}}
    images = few_images()
    run = trainer(recipe(method, epochs=6, optimizer={"learning_rate": 0.2}, **tables), tmp_path, images)
    summary = run.run()
    epochs = [event for event in log(tmp_path) if event["event"] == "epoch"]
    best = max(epochs, key=lambda event: event["holdout"]["top1"])
    ends = [event["holdout"]["top1"] for event in epochs if event["epoch"] % 3 == 0]
    assert best["holdout"]["top1"] > max(ends), "the run has its best epoch within an interval"
    assert (summary["best_epoch"], summary["best_holdout_top1"]) == (best["epoch"], best["holdout"]["top1"])
    header, student = read_student(tmp_path / "best.safetensors")
    _, holdout = split_holdout(images.read_train(), 0.1)
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (header.mean, header.std))
    right = student((holdout.all_images() / 255 - mean) / deviation).argmax(1) == holdout.labels
    assert 100 * right.float().mean().item() == pytest.approx(best["holdout"]["top1"])


@pytest.mark.parametrize("method", ["tfkd", "tfkd-mrs"])
def test_what_is_steered_needs_held_out_images(tmp_path: Path, method: str) -> None:
    with pytest.raises(UserError, match=rf"method {method} is steered by held-out images: set data.holdout above 0"):
        trainer(recipe(method, data={"holdout": 0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_equal_compute_control_selects_among_candidates_of_plain_cross_entropy(tmp_path: Path) -> None:
    control = recipe("ce", selection={"budget": "full", "candidates": 2, "interval": 1})
    trainer(control, tmp_path).run()
    kinds = [event["event"] for event in log(tmp_path)]
    assert kinds.count("selection") == 2
    assert "decision" not in kinds
    selection = next(event for event in log(tmp_path) if event["event"] == "selection")
    assert selection["values"][0] != selection["values"][1]  # candidates differ by their data order


@pytest.mark.parametrize("interval", [1, 2])
def test_weights_averaged_over_one_epoch_end_are_those_that_were_judged(tmp_path: Path, interval: int) -> None:
    criteria = ["averaged-top1", "holdout-nll"]
    selection = {"budget": "full", "candidates": 2, "interval": interval, "criteria": criteria}
    run = trainer(recipe("ce", epochs=2, selection=selection, data={"batch_size": 64}), tmp_path, few_images())
    run.run()
    chosen = [event for event in log(tmp_path) if event["event"] == "selection"][-1]
    ends = [event["holdout"] for event in log(tmp_path) if event["event"] == "epoch"][-2:]
    averaged, nll = zip(*chosen["values"], strict=True)
    assert ([100 * value for value in averaged] == [end["top1"] for end in ends]) == (interval == 1)
    assert nll != tuple(end["calibrated_nll"] for end in ends)  # of the weights averaged over the epoch's steps


def test_within_an_interval_a_decision_observes_what_it_does_between_two(tmp_path: Path) -> None:
    """The first of two candidates that train in one interval is the student that trains alone, an epoch an interval,
    and both are judged by averages of their weights."""
    values = {"target": {"sources": []}, "data": {"batch_size": 64}, "epochs": 5}
    observed = []
    for method in ("tfkd", "tfkd-mrs"):
        trainer(recipe(method, **values), tmp_path / method, few_images()).run()
        decisions = [event for event in log(tmp_path / method) if event["event"] == "decision"]
        assert [decision["first_epoch"] for decision in decisions] == [1, 2, 3, 4, 5]
        observed.append([decision["progress"] for decision in decisions])
    alone, together = observed
    assert together == [pytest.approx(progress, abs=1e-6) for progress in alone]
    ends = [event["holdout"]["top1"] for event in log(tmp_path / "tfkd-mrs") if event["event"] == "epoch"]
    assert [100.0 * progress["holdout_top1"] for progress in together[1:]] != pytest.approx(ends[0:8:2])


def test_the_log_holds_all_that_a_decision_was_made_and_judged_by(tmp_path: Path) -> None:
    selection = {"candidates": 2, "interval": 1, "learning_rate_spread": 0.5}
    learned = merge(LEARNED, {"controller": {"warmup_epochs": 1}})
    trainer(recipe("tfkd-mrs", epochs=4, **learned, selection=selection), tmp_path).run()
    decisions, rewards, epochs, taught = (
        [event for event in log(tmp_path) if event["event"] == kind]
        for kind in ("decision", "reward", "epoch", "target")
    )
    warmup, *decided = decisions
    assert warmup["observation"] is None
    assert [candidate["role"] for candidate in warmup["candidates"]] == ["warm-up"]
    assert [event["interval"] for event in decided] == [event["interval"] for event in rewards] == [1, 2, 3]
    for decision, reward in zip(decided, rewards, strict=True):
        size = len(decision["action_names"])
        assert len(decision["observation"]) == 14 + size
        assert all(-1 <= entry <= 1 for entry in decision["observation"])
        assert [candidate["role"] for candidate in decision["candidates"]] == ["mean", "sample"]
        for candidate in decision["candidates"]:
            assert len(candidate["action"]) == size
            assert isinstance(candidate["log_probability"], float)
            assert candidate["true_mass"] == pytest.approx(math.exp(-candidate["divergence"]))
        assert len(reward["rewards"]) == len(reward["advantages"]) == 2
        assert sum(reward["rewards"]) == pytest.approx(0, abs=1e-9)
        assert set(reward["update"]) >= {"entropy", "std"}
        first, second = (event["learning_rate"] for event in epochs if event["epoch"] == decision["first_epoch"])
        factors = [candidate["learning_rate_factor"] for candidate in decision["candidates"]]
        assert [1.0, second / first] == pytest.approx(factors)
        assert first != second
    assert [(event["first_epoch"], event["epochs"]) for event in taught] == [(1, 1), (2, 1), (3, 1), (4, 1)]


def test_candidates_with_one_action_and_one_order_are_the_same_student(tmp_path: Path) -> None:
    """Targets act through the table alone: same seed, same action, same data order, bit for bit the same weights."""
    same = {"budget": "full", "candidates": 2, "interval": 2, "data_order": "shared"}
    bandit = {"name": "ucb", "arms": [[0.0] * 4]}  # of one arm: candidates that nothing tells apart are refused
    trainer(recipe("tfkd-mrs", target=LEARNED["target"], controller=bandit, selection=same), tmp_path).run()
    epochs = [event for event in log(tmp_path) if event["event"] == "epoch"]
    for first, second in zip(epochs[::2], epochs[1::2], strict=True):
        assert first["train_loss"] == second["train_loss"]
        assert first["holdout"] == second["holdout"]


def test_checkpoints_of_another_recipe_are_refused(tmp_path: Path) -> None:
    trainer(recipe("ce"), tmp_path).run()
    other = recipe("ce", seed=1)
    (tmp_path / "recipe.toml").write_text(other.to_toml())
    with pytest.raises(UserError, match=r"written with another recipe.toml"):
        Trainer(other, open_dataset(other.data), CPU, RunFolder(tmp_path), []).run()


def test_a_run_does_not_depend_on_the_loader(tmp_path: Path) -> None:
    """Not for arrays, and not for PNG files of the right size."""
    names = [name for name, reason in missing_loaders().items() if reason is None]
    for loader in names:
        trainer(recipe("ce", data={"loader": loader}), tmp_path / loader).run()
    students = {(tmp_path / loader / "student.safetensors").read_bytes() for loader in names}
    assert len(students) == 1


def test_auto_logs_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "FEW_IMAGES", 0)  # as if these were many
    run = trainer(recipe("ce"), tmp_path)
    images = run.parts.images
    summary = run.run()
    (event,) = (event for event in log(tmp_path) if event["event"] == "loader")
    speeds = event["images_per_second"]
    assert set(speeds) | set(event["refused"]) == {"resident", "dali", "torchvision"}
    assert speeds[event["chosen"]] == max(speeds.values())
    assert images.holdout is not None
    assert event["chosen"] == summary["loader"] == images.fit.name == images.holdout.name
    trainer(recipe("ce", data={"loader": "resident"}), tmp_path / "named").run()
    assert not [event for event in log(tmp_path / "named") if event["event"] == "loader"]


def test_deterministic_changes_nothing_on_the_cpu_and_is_forgotten_after_the_run(tmp_path: Path) -> None:
    for wanted in (False, True):
        api.train(recipe("tfkd", deterministic=wanted), tmp_path / str(wanted), listeners=[])
        assert not torch.are_deterministic_algorithms_enabled()
    students = [(tmp_path / str(wanted) / "student.safetensors").read_bytes() for wanted in (False, True)]
    assert students[0] == students[1]


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["ce", "tfkd", "tfkd-mrs"])
def test_deterministic_gives_the_same_bits_again_on_cuda(tmp_path: Path, method: str) -> None:
    for run in ("first", "second"):
        api.train(recipe(method, device="cuda", deterministic=True), tmp_path / run, listeners=[])
    students = [(tmp_path / run / "student.safetensors").read_bytes() for run in ("first", "second")]
    assert students[0] == students[1]


COMPILED: dict[str, Any] = {
    "method": "ce", "epochs": 1, "device": "cpu", "precision": "fp32", "model": {"width": 0.125},
    "data": {"dataset": "digits", "batch_size": 512},
}  # fmt: skip
WARM_START = """
import json, sys
from pathlib import Path
import torch
from tfkd_fast import api
from tfkd_fast.runs.recipe import make_recipe
SMALL = json.loads(sys.argv[2])
api.train(make_recipe(SMALL | {"compile": "on"}), Path(sys.argv[1]), listeners=[])
counters = torch._dynamo.utils.counters["inductor"]
print(counters["fxgraph_cache_hit"], counters["fxgraph_cache_miss"])
"""


def test_compiled_by_inductor_it_learns_the_same_and_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    api.train(make_recipe(COMPILED), tmp_path / "plain", listeners=[])
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    printed = []
    for run in ("cold", "warm"):
        command = [sys.executable, "-c", WARM_START, str(tmp_path / run), json.dumps(COMPILED)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout.split())
        epoch = next(event for event in log(tmp_path / run) if event["event"] == "epoch")
        plain = next(event for event in log(tmp_path / "plain") if event["event"] == "epoch")
        assert epoch["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-3)
        assert epoch["holdout"]["nll"] == pytest.approx(plain["holdout"]["nll"], rel=1e-3)
        assert json.loads((tmp_path / run / "summary.json").read_text())["compile_seconds"] > 0
    assert int(printed[0][1]) > 0
    assert int(printed[1][0]) > 0
    assert printed[1][1] == "0"


NO_HOME = """
import os
from tfkd_fast.device import resolve_compute
os.setuid(4_000_000_000)
print(resolve_compute("cpu", "fp32", "on").compile, os.environ.get("TORCHINDUCTOR_CACHE_DIR"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a home")
def test_without_a_home_compiled_code_is_kept_where_torch_keeps_it() -> None:
    own = ("HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run([sys.executable, "-c", NO_HOME], capture_output=True, text=True, env=environment)
    assert done.stdout == "True None\n", done.stderr


def test_weights_of_four_axes_alone_are_channels_last() -> None:
    """A parameter of five axes has no such format, and one of a lazy layer no axes yet."""
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv3d(2, 4, 3), nn.LazyLinear(5))
    values = [weight.detach().clone() for weight in network[:2].parameters()]
    assert CPU.place(network) is network
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous()
    assert all(map(torch.equal, network[:2].parameters(), values))


@pytest.mark.parametrize("kind", [EpochEnded, RunFinished])
def test_a_run_that_ends_by_an_exception_closes_its_log(tmp_path: Path, kind: type[Event]) -> None:
    """In training as after the test: Python warns of a file that it has to close itself."""

    class Breaks(Listener):
        def event(self, event: Event) -> None:
            if isinstance(event, kind):
                raise InterruptedError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with contextlib.suppress(InterruptedError):
            pytest.fail(f"it ended with {api.train(recipe('ce', epochs=1), tmp_path, listeners=[Breaks()])}")
        gc.collect()
    assert not [str(warning.message) for warning in caught if "metrics.jsonl" in str(warning.message)]


AVERAGES: dict[str, Any] = {
    "target": {"family": "scalar"},
    "controller": {"name": "fixed"},
    "selection": {
        "candidates": 3,
        "interval": 2,
        "average": "all",
        "start": 0.5,
        "criteria": ["holdout-nll", "averaged-top1"],
    },
}


def test_the_student_is_the_average_with_batch_norm_of_all_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(recipe("tfkd-mrs", epochs=4, **AVERAGES), tmp_path, few_images())
    method, population, images = run.parts.method, run.population, run.parts.images
    assert isinstance(method, SteeredMethod)
    assert images.holdout is not None
    selects, weights, judged = method.end_interval, {}, []

    def choose_the_average(results: Sequence[IntervalResult], judge: JudgeAverage) -> Outcome:
        outcome = selects(results, judge)
        if len(results) == 1:
            return outcome
        weights.update({name: stack.double().mean(dim=0) for name, stack in population.weights.items()})
        judged.append(judge((2, 0, 1)))
        return replace(outcome, survivors=(1,), averaged=(2, 0, 1))

    monkeypatch.setattr(method, "end_interval", choose_the_average)
    order = images.fit.order(4)
    shown = torch.cat([batch.images for batch in images.fit.visit(order, 4)])
    summary = run.run()
    student = population.models[0]
    assert summary["student_epochs"] == 2 + 3 * 2
    for name, weight in student.named_parameters():
        torch.testing.assert_close(weight, weights[name].float())

    # The statistics of the first norm, from the convolution before it on all training images at once.
    convolution = next(module for module in student.modules() if isinstance(module, nn.Conv2d))
    norm = next(module for module in student.modules() if getattr(module, "running_mean", None) is not None)
    with torch.no_grad():
        maps = convolution(shown).double()
    torch.testing.assert_close(norm.running_mean, maps.mean(dim=(0, 2, 3)).float(), rtol=1e-2, atol=1e-3)

    (metrics,) = holdout_metrics([student], images.holdout, run.compute)
    (line,) = [line for line in log(tmp_path) if line["event"] == "average"]
    assert line["candidates"] == [2, 0, 1]
    assert line["holdout"]["top1"] == pytest.approx(100 * metrics.top1)
    assert line["holdout"]["nll"] == pytest.approx(metrics.nll)
    (before,) = judged  # by fewer images for batch norm, and by weights averaged over the last epoch
    assert isinstance(before, AverageResult)
    assert before.average.nll == pytest.approx(metrics.nll, rel=0.2)
    assert before.interval_average is not None
    assert before.interval_average.nll == pytest.approx(metrics.nll, rel=0.2)


# What a recipe asks for beside the student.

UNMOVED = {"learning_rate": 1e-12}
"""An optimiser under which held-out top-1 never rises."""


THREE_EPOCHS = {"selection": {"candidates": 2, "interval": 3}, "controller": {"warmup_epochs": 0}}


@pytest.mark.parametrize(
    ("method", "tables", "last"),
    [("ce", {"patience": 2}, 3), ("tfkd-mrs", {"patience": 1, **THREE_EPOCHS}, 3)],
)
def test_a_run_ends_early_between_two_intervals_and_says_so(
    method: str, tables: dict[str, Any], last: int, tmp_path: Path
) -> None:
    settings = recipe(method, epochs=8, optimizer=UNMOVED, **tables)
    summary = api.train(settings, tmp_path / "run")
    assert (summary["stopped_after"], summary["best_epoch"], summary["epochs"]) == (last, 1, 8)
    (said,) = (event for event in log(tmp_path / "run") if event["event"] == "early-stop")
    assert (said["epoch"], said["best_epoch"], said["patience"]) == (last, 1, tables["patience"])
    assert f"ended early, after epoch {last}" in write_report(tmp_path / "run").read_text()
    with pytest.raises(UserError, match="ended early: train it without patience to replay it"):
        api.replay(tmp_path / "run", tmp_path / "again")
    whole, before = (tmp_path / "run" / "student.safetensors").read_bytes(), without_clocks(tmp_path / "run")
    for name in ("summary.json", "student.safetensors", f"checkpoints/epoch-{last:05d}.ckpt"):
        (tmp_path / "run" / name).unlink()
    for _ in range(2):  # from the epoch before, and from the last one
        assert api.resume(tmp_path / "run")["stopped_after"] == last
        assert (tmp_path / "run" / "student.safetensors").read_bytes() == whole
        assert without_clocks(tmp_path / "run") == before
        (tmp_path / "run" / "summary.json").unlink()


def test_a_run_without_held_out_images_cannot_end_early() -> None:
    with pytest.raises(UserError, match=r"'patience' counts epochs by held-out images: set data\.holdout above 0"):
        recipe("ce", patience=2, data={"holdout": 0.0})


def test_the_moving_average_is_tested_beside_the_student(tmp_path: Path) -> None:
    settings = recipe("ce", epochs=3, optimizer={"ema_decay": 0.5}, schedule={"name": "one-cycle"})
    summary = api.train(settings, tmp_path)
    figures = api.evaluate(tmp_path, device="cpu", precision="fp32")
    for name in ("ema_holdout_top1", "ema_test_top1"):
        assert figures[name] == pytest.approx(summary[name])
        assert figures[name] > 20  # percent, of ten classes
    run = tfkd_fast.load_run(tmp_path)
    digits = open_dataset(settings.data)
    images = digits.read_test()
    loader = make_loader(images, digits, settings.data, torch.device("cpu"), torch.float32, 0)
    right = sum((run.ema()(batch.images).argmax(1) == batch.labels).sum().item() for batch in loader.in_order())
    assert 100 * right / len(images) == pytest.approx(summary["ema_test_top1"])
    assert summary["ema_test_top1"] != summary["test_top1"]
    assert f"{summary['ema_test_top1']:.2f} % on the test set" in write_report(tmp_path).read_text()


def test_the_surest_mistakes_are_images_that_the_student_errs_on(tmp_path: Path) -> None:
    settings = recipe("ce", epochs=2, precision="fp32")
    summary = api.train(settings, tmp_path)
    (test,) = [line for line in log(tmp_path) if line["event"] == "test"]
    images = open_dataset(settings.data).read_test()
    assert sum(test["class_images"]) == len(images)
    right = sum(n * top1 / 100 for n, top1 in zip(test["class_images"], test["class_top1"], strict=True))
    assert 100 * right / len(images) == pytest.approx(summary["test_top1"])
    pictures, run = api.mistakes(tmp_path), tfkd_fast.load_run(tmp_path)
    student = run.student()
    assert list(pictures) == [mistake["image"] for mistake in test["mistakes"]]
    for mistake in test["mistakes"]:
        assert images.labels[mistake["image"]] == mistake["label"] != mistake["prediction"]
        logits = student(run.normalise(images.image(mistake["image"]).unsqueeze(0)))
        assert int(logits.argmax()) == mistake["prediction"]
        assert 100 * logits.detach().softmax(1).max().item() == pytest.approx(mistake["confidence"], abs=0.01)
    assert write_report(tmp_path, pictures).read_text().count('<img src="data:image/png') == len(pictures)


def test_more_batches_than_an_epoch_has_make_no_update(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"an epoch has 6 batches: set optimizer\.accumulate to 6 or less"):
        trainer(recipe("ce", optimizer={"accumulate": 7}, data={"batch_size": 64}), tmp_path, few_images())
