"""A candidate that is no longer finite: where it is seen, what is said of it, and what a run does without it."""

import contextlib
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.runs import CPU, few_images, log, recipe, trainer, without_clocks
from tfkd_fast.data import Batch, MixPartners
from tfkd_fast.device import Compute
from tfkd_fast.errors import UserError
from tfkd_fast.finiteness import named_tensors, nonfinite_names
from tfkd_fast.methods.base import HoldoutMetrics, Plan, TeacherOutputs
from tfkd_fast.report import read_run, write_report
from tfkd_fast.report.words import ranking_words
from tfkd_fast.runs import folder as run_folder
from tfkd_fast.runs.checkpoint import load_checkpoint, save_checkpoint
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.training.divergence import Fault, figures_fault, input_fault, loss_fault
from tfkd_fast.training.epoch import EpochRun
from tfkd_fast.training.feed import StepInput
from tfkd_fast.training.trainer import Trainer

NAN, INF = math.nan, math.inf
LOWER = "lower optimizer.learning_rate"
MRS: dict[str, Any] = {
    "epochs": 3,
    "data": {"batch_size": 64},
    "target": {"family": "scalar"},
    "selection": {"budget": "full", "candidates": 3, "interval": 3},
}


def spoiled(settings: Recipe, path: Path, *candidates: int, before: int = 2) -> Trainer:
    """A run in which momenta of some candidates are infinite before an epoch: its first update breaks them."""
    run = trainer(settings, path, few_images())
    train = run.parts.epochs.run

    def spoil_and_train(plan: Plan, epoch: int, rates: list[float], **named: Any) -> list[EpochRun]:
        if epoch == before - 1:
            run.population.optimizer_state["momenta"]["classifier.bias"][list(candidates), 0] = INF
        return train(plan, epoch, rates, **named)

    run.parts.epochs.run = spoil_and_train  # type: ignore[method-assign]
    return run


@pytest.mark.parametrize("batch_size", [64, 1000])
def test_the_last_good_checkpoint_is_named_wherever_in_an_epoch_it_happens(tmp_path: Path, batch_size: int) -> None:
    """The second update of epoch 2 is in the loss of a later step; the only one of an epoch of one step is in none."""
    run = spoiled(recipe("ce", epochs=3, data={"batch_size": batch_size}), tmp_path, 0)
    good = tmp_path / "checkpoints" / "epoch-00001.ckpt"
    with pytest.raises(UserError) as raised:
        run.run()
    what, _, rest = str(raised.value).partition("; ")
    assert rest == f"the last good checkpoint is {good}: {LOWER}"
    if batch_size == 64:
        assert what in ("the loss became nan in epoch 2, step 2", "the loss became inf in epoch 2, step 2")
    else:
        assert what == "not finite after epoch 2: weights.classifier.bias and 1 more"
    assert sorted(good.parent.iterdir()) == [good]
    assert not (tmp_path / "student.safetensors").exists()
    assert nonfinite_names(named_tensors(load_checkpoint(good))) == []


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(tmp_path: Path) -> None:
    """Earlier versions wrote such checkpoints."""
    settings = recipe("ce", epochs=2, data={"batch_size": 1000})
    trainer(settings, tmp_path, few_images()).run()
    newest = tmp_path / "checkpoints" / "epoch-00002.ckpt"
    state = load_checkpoint(newest)
    state["population"]["candidates"][0]["momenta"]["classifier.bias"][0] = NAN
    save_checkpoint(newest, state)
    with pytest.raises(UserError, match=r"epoch-00002\.ckpt is not finite \(population\.candidates\.0\.momenta\.cl"):
        Trainer(settings, few_images(), CPU, RunFolder(tmp_path), []).run()


def test_a_selection_goes_on_without_a_candidate_that_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a checkpoint in the middle of its interval, to the same bits."""
    monkeypatch.setattr(run_folder, "KEPT_CHECKPOINTS", 3)
    settings = recipe("tfkd-mrs", **MRS)
    whole, part = tmp_path / "whole", tmp_path / "part"
    run = spoiled(settings, whole, 1)
    run.run()
    events = log(whole)
    (diverged,) = (event for event in events if event["event"] == "diverged")
    assert (diverged["epoch"], diverged["candidate"]) == (2, 1)
    assert "in epoch 2, step 2" in diverged["reason"]
    (selection,) = (event for event in events if event["event"] == "selection")
    assert selection["order"][-1] == 1
    assert selection["values"][1] == [None] * len(selection["criteria"])
    (reward,) = (event for event in events if event["event"] == "reward")
    assert min(reward["rewards"]) == reward["rewards"][1]
    assert ranking_words(read_run(whole)).endswith(" Left out because they diverged: candidate 1 in epoch 2.")
    of_epochs = {(e["epoch"], e["candidate"]): e for e in events if e["event"] == "epoch"}
    for (epoch, candidate), event in of_epochs.items():
        is_lost = candidate == 1 and epoch > 1
        assert (event["train_loss"] is None) == (event["holdout"]["nll"] is None) == is_lost
    for file in (whole / "checkpoints").iterdir():
        assert nonfinite_names(named_tensors(load_checkpoint(file))) == []

    shutil.copytree(whole, part)
    (part / "student.safetensors").unlink()
    (part / "checkpoints" / "epoch-00003.ckpt").unlink()
    Trainer(settings, few_images(), CPU, RunFolder(part), []).run()
    assert (part / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    assert without_clocks(part) == without_clocks(whole)


def test_where_too_few_are_left_the_sound_ones_live_on_twice(tmp_path: Path) -> None:
    """Of four candidates of a rung of halving two shall live on, but three diverged."""
    tables = MRS | {"selection": {"budget": "halving", "candidates": 2}}
    spoiled(recipe("tfkd-mrs", **tables), tmp_path, 0, 1, 3, before=1).run()
    first, *_ = (event for event in log(tmp_path) if event["event"] == "selection")
    assert (first["order"][0], first["survivors"]) == (2, [2, 2])


@pytest.mark.parametrize(
    ("tables", "lost", "message"),
    [
        (MRS, (0, 1, 2), r"candidate 0: the loss became"),
        ({"target": {"sources": ["peers"], "peers": 2}, "epochs": 3}, (1,), r"candidate [01]: the loss became"),
    ],
)
def test_where_none_is_left_or_none_is_selected_the_run_ends(
    tmp_path: Path, tables: dict[str, Any], lost: tuple[int, ...], message: str
) -> None:
    """Peers that learn from each other diverge together."""
    method = "tfkd-mrs" if tables is MRS else "tfkd"
    run = spoiled(recipe(method, **tables), tmp_path, *lost)
    with contextlib.closing(run), pytest.raises(UserError, match=message) as caught:
        run.run()
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["epoch-00001.ckpt"]
    end = read_run(tmp_path).end
    assert end is not None
    assert end.reason in str(caught.value)
    assert f"It diverged: {end.reason}." in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("losses", "names", "epoch", "expected"),
    [
        ([[1.0], [2.0]], [], 0, None),
        ([[1.0], [INF], [NAN]], [], 2, (1, "the loss became inf in epoch 3, step 2")),
        (
            [[1.0, 1.0, 0.0], [NAN, 1.0, NAN]],
            ["hard", "soft"],
            0,
            (1, "the loss became nan in its term soft in epoch 1, step 2"),
        ),
        ([[NAN, NAN, NAN]], ["hard", "soft"], 1, (0, "the loss became nan in epoch 2, step 1")),
        ([[NAN, NAN, 1.0, NAN]], ["a", "b", "c"], 4, (0, "the loss became nan in its terms a, c in epoch 5, step 1")),
        ([[NAN]], [], 0, (0, "the loss became nan in epoch 1, step 1, before anything was learned")),
    ],
)
def test_the_first_bad_step_and_its_terms(
    losses: list[list[float]], names: list[str], epoch: int, expected: tuple[int, str] | None
) -> None:
    found = loss_fault(losses, names, epoch, CPU)
    assert (found and (found[0], found[1].what)) == expected
    if found is not None and "before anything" not in found[1].what:
        assert found[1].remedy == LOWER
    if found is not None and "before anything" in found[1].what:
        assert "learning_rate" not in found[1].remedy


def test_more_precision_is_a_remedy_where_there_is_more() -> None:
    found = loss_fault([[NAN]], [], 1, Compute(torch.device("cpu"), torch.bfloat16))
    assert found is not None
    assert found[1].remedy == "lower optimizer.learning_rate or use --precision fp32"


def test_the_cause_is_looked_for_in_what_the_step_was_given() -> None:
    found = Fault("the loss became nan in epoch 1, step 2", LOWER)
    batch = Batch(torch.zeros(1, 3, 1, 2, 2), torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[7, 5, 9]]))
    sound, logits = StepInput(batch), torch.zeros(1, 3, 4)
    assert input_fault(found, sound, ["deep"], [TeacherOutputs(logits)]) is found

    bad_logits = logits.clone()
    bad_logits[0, 1, 2] = NAN
    by_teacher = input_fault(found, sound, ["deep", "wide"], [TeacherOutputs(logits), TeacherOutputs(bad_logits)])
    assert by_teacher.what == f"{found.what}, because what teacher wide gives for training image 5 is not finite"
    assert by_teacher.remedy == "name another run as the teacher, or train it again"

    images = batch.images.clone()
    images[0, 2, 0, 1, 1] = INF
    by_image = input_fault(found, StepInput(batch._replace(images=images)), ["wide"], [TeacherOutputs(bad_logits)])
    assert by_image.what == f"{found.what}, because training image 9 is not finite as it is shown"
    assert by_image.remedy == "mend that image"
    by_shares = input_fault(found, StepInput(batch, None, MixPartners(batch.labels, torch.tensor([NAN]))), [], [])
    assert by_shares.what == f"{found.what}, because images are mixed in shares that are not finite"
    assert by_shares.remedy == "lower data.mix_alpha"


@pytest.mark.parametrize("name", ["top1", "nll", "calibrated_nll"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_figures_show_a_fault(name: str, bad: float) -> None:
    sound = dict.fromkeys(("top1", "top5", "nll", "calibrated_nll", "temperature", "brier", "ece", "entropy"), 0.5)
    assert figures_fault(HoldoutMetrics(**sound, confidence=0.5), "after epoch 2", CPU) is None
    assert figures_fault(None, "after epoch 2", CPU) is None
    found = figures_fault(HoldoutMetrics(**sound | {name: bad}, confidence=0.5), "after epoch 2", CPU)
    assert found == Fault(f"the held-out {name} became {bad} after epoch 2", LOWER)
