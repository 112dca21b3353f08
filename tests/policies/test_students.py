"""Students that are taught from outside: they are those of the trainer, and what they may read and refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.runs import log, recipe, trainer
from tfkd_fast import policies
from tfkd_fast.data import ImagesSealed, open_dataset
from tfkd_fast.errors import UserError
from tfkd_fast.policies.students import Students
from tfkd_fast.steering.control import Progress, observation
from tfkd_fast.training.divergence import Diverged
from tfkd_fast.training.epoch import EpochTrainer

FEW: dict[str, Any] = {"data": {"holdout": 0.8}}
SCALAR: dict[str, Any] = {"target": {"sources": []}}


@pytest.mark.parametrize(
    "tables",
    [
        {"controller": {"name": "random"}},
        {"controller": {"name": "random", "interval": 2}, "target": {"sources": ["memory", "slow-self"]}},
        {"controller": {"name": "random", "interval": 2, "cooldown_epochs": 1}, "target": {"sources": ["memory"]}},
    ],
    ids=["a decision an epoch", "every two epochs, with memories", "with a cooldown"],
)
def test_they_are_what_a_controller_sees_under_the_same_actions(tmp_path: Path, tables: dict[str, Any]) -> None:
    """Number for number: the progress before each decision of a run, warm-up included, and its observation."""
    run = recipe("tfkd", epochs=6, **FEW, **tables)
    trainer(run, tmp_path).run()
    decisions = [event for event in log(tmp_path) if event["event"] == "decision"][1:]  # the first is the warm-up
    students = Students(run)
    for seed in (1, 0):  # what another student left behind plays no part
        (snapshot,) = students.start([seed])
        previous = torch.zeros(len(students.action_names))
        seen = []
        for decision in decisions:
            seen.append((snapshot.progress, observation(snapshot.progress, previous).tolist()))
            previous = torch.tensor(decision["candidates"][0]["action"])
            (snapshot,) = students.train(previous.unsqueeze(0))
            assert snapshot is not None
        assert snapshot.epoch == 6
    assert seen == [(Progress(**decision["progress"]), decision["observation"]) for decision in decisions]
    taught = [event for event in log(tmp_path) if event["event"] == "target"][-1]
    assert (snapshot.progress.true_mass, snapshot.divergence) == pytest.approx(
        (taught["true_mass"], taught["divergence"]), abs=1e-7
    )


@pytest.mark.parametrize("way", ["sequential", "streams", "stacked"])
def test_side_by_side_each_learns_what_it_learns_alone(way: str) -> None:
    """Sums in another order: 1e-7 a step, and few steps at a rate that carries little of it on."""
    small = recipe("tfkd", population=way, optimizer={"learning_rate": 1e-3}, **FEW, **SCALAR)
    actions, seeds = torch.tensor([[1.0], [-2.0], [1.0]]), [7, 7, 8]
    together = Students(small, 3)
    together.start(seeds)
    snapshots = together.train(actions)
    alone = Students(small)
    losses = []
    for seed, action, snapshot in zip(seeds, actions, snapshots, strict=True):
        alone.start([seed])
        (expected,) = alone.train(action.unsqueeze(0))
        assert snapshot is not None
        assert expected is not None
        assert snapshot.divergence == expected.divergence
        assert snapshot.progress.train_loss == pytest.approx(expected.progress.train_loss, rel=1e-5)
        assert snapshot.progress.holdout_nll == pytest.approx(expected.progress.holdout_nll, rel=1e-5)
        losses.append(expected.progress.train_loss)
    assert min(abs(losses[0] - losses[1]), abs(losses[0] - losses[2])) > 1e-4 * losses[0]  # they can be told apart


@pytest.mark.parametrize("seeds", [[3, 4], [3, 3]])
@pytest.mark.parametrize("then", [[3, 4], [3, 3]])
def test_stacked_students_may_share_a_seed_in_one_run_and_not_in_the_next(seeds: list[int], then: list[int]) -> None:
    small = recipe("tfkd", population="stacked", epochs=1, **FEW, **SCALAR)
    students, actions = Students(small, 2), torch.zeros(2, 1)
    students.start(seeds)
    students.train(actions)
    students.start(then)
    again = students.train(actions)
    fresh = Students(small, 2)
    fresh.start(then)
    assert again == fresh.train(actions)
    assert (again[0] == again[1]) == (then[0] == then[1])


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["sequential", "streams", "stacked"])
def test_on_cuda_captured_steps_serve_the_next_students(way: str) -> None:
    slow = {"optimizer": {"learning_rate": 1e-3}}  # carries little on of what the order of sums changes
    small = recipe("tfkd", device="cuda", population=way, deterministic=True, epochs=4, **FEW, **slow)
    students = Students(small, 2)
    first, second = [0.5, -1.0, 0.0, 2.0], [2.0, 0.0, -1.0, 0.5]
    actions = torch.tensor([first, second])[:, : len(students.action_names)]
    lanes = []
    runs = []
    for seeds in ([1, 2], [3, 4], [1, 2]):
        students.start(seeds)
        runs.append([students.train(actions) for _ in range(3)])
        lanes.append([id(lane) for lane in students.trainer.lanes(students.plan, average=True)])
    assert lanes[0] == lanes[1] == lanes[2]
    assert runs[0] != runs[1]
    for snapshot, again in zip(runs[0][-1], runs[2][-1], strict=True):
        assert snapshot is not None
        assert again is not None
        assert again.progress.train_loss == pytest.approx(snapshot.progress.train_loss, rel=1e-4)


def test_test_images_are_sealed_while_they_train(monkeypatch: pytest.MonkeyPatch) -> None:
    run, sealed = EpochTrainer.run, []

    def look(*arguments: Any, **named: Any) -> Any:
        with pytest.raises(ImagesSealed):
            digits.read_test()
        sealed.append(True)
        return run(*arguments, **named)

    monkeypatch.setattr(EpochTrainer, "run", look)
    digits = open_dataset(recipe("ce").data)
    students = Students(recipe("tfkd", epochs=4, **FEW))
    students.start([0])
    students.train(torch.zeros(1, len(students.action_names)))
    assert len(sealed) == 2
    assert len(digits.read_test()) > 0


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    students = Students(recipe("tfkd", optimizer={"learning_rate": 1e30}, **FEW, **SCALAR))
    students.start([0])
    assert students.train(torch.zeros(1, 1)) == [None]
    with pytest.raises(RuntimeError, match="call start"):
        students.train(torch.zeros(1, 1))
    with_warmup = Students(recipe("tfkd", epochs=4, optimizer={"learning_rate": 1e30}, **FEW))
    with pytest.raises(Diverged, match=r"the loss became (nan|inf) in epoch 1"):
        with_warmup.start([0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_optimizer_trains_them_as_a_run(tmp_path: Path, optimizer: str) -> None:
    run = recipe("tfkd", epochs=2, optimizer={"name": optimizer}, controller={"name": "fixed"}, **FEW, **SCALAR)
    trainer(run, tmp_path).run()
    students = Students(run)
    students.start([run.seed])
    snapshots = [students.train(torch.zeros(1, 1))[0] for _ in range(2)]
    losses = [event["train_loss"] for event in log(tmp_path) if event["event"] == "epoch"]
    assert [snapshot and snapshot.progress.train_loss for snapshot in snapshots] == pytest.approx(losses, rel=1e-6)


def test_a_student_whose_layers_draw_numbers_is_the_same_again(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef net(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 16), nn.Dropout(0.5), nn.Linear(16, num_classes))\n"
    )
    students = Students(recipe("tfkd", epochs=2, model={"name": f"{tmp_path / 'net.py'}:net"}, **FEW, **SCALAR))
    seen = []
    for seed in (3, 4, 3):
        students.start([seed])
        seen.append(students.train(torch.zeros(1, 1)))
    assert seen[0] == seen[2] != seen[1]


@pytest.mark.parametrize(
    ("method", "tables", "message"),
    [
        ("ce", FEW, r"nothing to steer in the one-hot target: choose target\.family scalar"),
        ("tfkd", {"data": {"holdout": 0}}, r"judged on held-out images: set data\.holdout above 0"),
        ("tfkd", {"target": {"sources": ["peers"]}}, r"learn alone: take peers out of target\.sources"),
    ],
)
def test_what_cannot_be_steered_is_refused(method: str, tables: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Students(recipe(method, **tables))


def test_wrong_calls_are_refused() -> None:
    students = Students(recipe("tfkd", epochs=1, **FEW, **SCALAR))
    with pytest.raises(RuntimeError, match="call start"):
        students.train(torch.zeros(1, 1))
    for seeds in ([0, 1], [-1], [2**32]):
        with pytest.raises(ValueError, match=r"seeds must be 1 numbers in 0 \.\. 2\*\*32 - 1"):
            students.start(seeds)
    students.start([0])
    with pytest.raises(ValueError, match=r"actions must be \(1,1\), got \(2, 1\)"):
        students.train(torch.zeros(2, 1))
    students.train(torch.zeros(1, 1))
    with pytest.raises(RuntimeError, match="call start"):
        students.train(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="count must be 1 or more"):
        policies.Students(recipe("tfkd", **FEW), 0)
