"""Several candidates: the state of survivors is copied, all of it, and a restored loop goes on with the same bits."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.own_loop.calls import CLASSES, make
from tfkd_fast.errors import UserError
from tfkd_fast.own_loop import Steering

IMAGES = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
LABELS = IMAGES[:, :CLASSES].argmax(1)
FIT, HELD_OUT = slice(0, 40), slice(40, 64)


def make_candidates(count: int) -> list[tuple[nn.Module, torch.optim.AdamW, Any]]:
    """Networks with batch norm, optimisers with moments, and schedules."""
    candidates = []
    for _ in range(count):
        network = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))
        optimizer = torch.optim.AdamW(network.parameters(), 0.01)
        candidates.append((network, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)))
    return candidates


def run_epoch(steering: Steering, epoch: int) -> tuple[int, ...] | None:
    """Train each candidate for an epoch on batches of its own order, judge it, and select; returns the survivors."""
    train_epoch(steering, epoch)
    return select(steering)


def train_epoch(steering: Steering, epoch: int) -> None:
    for number, (network, optimizer, schedule) in steering.training():
        generator = torch.Generator().manual_seed(10 * epoch + number)
        for batch in torch.randperm(40, generator=generator).split(8):
            logits = network(IMAGES[FIT][batch])
            loss = steering.criterion(logits, LABELS[FIT][batch], indices=batch, candidate=number)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


def select(steering: Steering) -> tuple[int, ...] | None:
    return steering.end_epoch([judge(network) for _, (network, *_) in steering.training()], LABELS[HELD_OUT]).survivors


@torch.no_grad()
def judge(network: nn.Module) -> Tensor:
    logits = network.eval()(IMAGES[HELD_OUT])
    network.train()
    return logits


def flatten(state: Any) -> list[Any]:
    """Tensors as lists, in the order of a state."""
    if isinstance(state, dict):
        return [part for key in state for part in flatten(state[key])]
    if isinstance(state, list | tuple):
        return [part for each in state for part in flatten(each)]
    return [state.tolist()] if isinstance(state, Tensor) else [state]


def states(candidate: Sequence[Any]) -> list[Any]:
    return flatten([copy.deepcopy(part.state_dict()) for part in candidate])


def test_candidates_start_alike_and_all_go_on_from_the_winner() -> None:
    steering = Steering(make("tfkd-mrs"), make_candidates(3))
    first = [states(candidate) for candidate in steering.candidates]
    assert first[0] == first[1] == first[2]
    assert run_epoch(steering, 0) is None  # within an interval of two epochs
    apart = [states(candidate) for candidate in steering.candidates]
    assert apart[0] != apart[1] != apart[2] != apart[0]
    train_epoch(steering, 1)
    before = [states(candidate) for candidate in steering.candidates]
    survivors = select(steering)
    assert survivors is not None
    assert [states(candidate) for candidate in steering.candidates] == [before[survivors[0]]] * 3


def test_learning_rates_are_asked_for_the_epochs_of_the_loop_alone() -> None:
    rates = [1.0, 0.5, 0.2, 0.1]
    criterion = make("tfkd-mrs", learning_rate_ratio=rates.__getitem__, controller={"name": "ppo"})
    steering = Steering(criterion, make_candidates(3))
    for epoch in range(len(rates)):
        run_epoch(steering, epoch)
    assert criterion.epoch == len(rates)


def test_several_survivors_are_dealt_out_over_the_candidates() -> None:
    """Successive halving: 4 train, the best 2 of them go on in slots 0 and 1, and wait as copies in 2 and 3."""
    tables = {"selection": {"budget": "halving", "candidates": 2}, "controller": {"warmup_epochs": 0}}
    steering = Steering(make("tfkd-mrs", **tables), make_candidates(4))
    train_epoch(steering, 0)
    trained = [states(candidate) for candidate in steering.candidates]
    survivors = select(steering)
    assert survivors is not None
    best, second = survivors
    assert [states(candidate) for candidate in steering.candidates] == [trained[best], trained[second]] * 2
    assert [number for number, _ in steering.training()] == [0, 1]


def test_a_restored_loop_goes_on_with_the_same_bits() -> None:
    straight = Steering(make("tfkd-mrs"), make_candidates(3))
    run_epoch(straight, 0)
    state = copy.deepcopy(straight.state_dict())
    restored = Steering(make("tfkd-mrs"), make_candidates(3))
    restored.load_state_dict(state)
    for epoch in range(1, 4):
        assert run_epoch(straight, epoch) == run_epoch(restored, epoch)
    for one, other in zip(straight.candidates, restored.candidates, strict=True):
        assert states(one) == states(other)


def test_wrong_candidates_are_refused_in_one_sentence() -> None:
    candidates = make_candidates(3)
    with pytest.raises(UserError, match="method 'tfkd-mrs' trains 3 candidates here: got 2"):
        Steering(make("tfkd-mrs"), candidates[:2])
    for wrong in (nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 3), (candidates[2][0], 3)):
        with pytest.raises(UserError, match=r"a candidate is a tuple of a network, .*: got (Sequential|Linear|\()"):
            Steering(make("tfkd-mrs"), [*candidates[:2], wrong])
    with pytest.raises(UserError, match="two candidates share"):
        Steering(make("tfkd-mrs"), [candidates[0]] * 3)
    small = Steering(make("tfkd-mrs", selection={"candidates": 2}), make_candidates(2))
    with pytest.raises(UserError, match="the state has 3 candidates, not 2"):
        small.load_state_dict(Steering(make("tfkd-mrs"), make_candidates(3)).state_dict())
