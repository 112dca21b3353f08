"""The method without a network: its intervals, its loss, what it logs, what survives, and its state."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.tables import LEARNED
from tfkd_fast.errors import UserError
from tfkd_fast.events import CandidateSelected, ControllerRewarded, Event, TargetApplied, TargetsDecided
from tfkd_fast.methods import Context, Method, find_method
from tfkd_fast.methods.base import (
    AverageResult,
    EpochResult,
    HoldoutMetrics,
    IntervalResult,
    Outcome,
    Plan,
    StepBatch,
    TrainingStatistics,
)
from tfkd_fast.ops import SoftTargetStats
from tfkd_fast.settings import UNREAD_TOO
from tfkd_fast.steering.selection import learning_rate_factors
from tfkd_fast.steering.targets import Superclasses

EventT = TypeVar("EventT", bound=Event)

CLASSES = 5
IMAGES = 20


def build(
    name: str,
    epochs: int = 12,
    ratio: Any = lambda epoch: 1.0,
    superclasses: Superclasses | None = None,
    checked: dict[str, bool] | None = None,
    **tables: dict[str, Any],
) -> Method:
    """A method; `tfkd` and `tfkd-mrs` learn a free-form target unless the tables say otherwise."""
    entry = find_method(name)
    preset = entry.preset | (LEARNED if name in ("tfkd", "tfkd-mrs") else {})
    if name == "tfkd-mrs":
        preset["selection"] = {"budget": "full"}  # of four candidates in intervals of five epochs
    merged = {key: preset.get(key, {}) | tables.get(key, {}) for key in {*preset, *tables}}
    settings = entry.settings.model_validate(merged, context=checked)
    return entry.build(settings, Context(CLASSES, IMAGES, epochs, 0, torch.device("cpu"), ratio, superclasses))


def metrics(top1: float, nll: float) -> HoldoutMetrics:
    return HoldoutMetrics(top1, 1.0, nll, nll, 1.0, 0.5, 0.1, 0.5, top1)


def one_loss(
    method: Method, logits: torch.Tensor, labels: torch.Tensor, slot: int = 0
) -> tuple[torch.Tensor, SoftTargetStats]:
    """Of one candidate: logits (B,C), labels (B,)."""
    batch = StepBatch(labels.unsqueeze(0), torch.arange(len(labels)).unsqueeze(0), slot)
    loss = method.loss(logits.unsqueeze(0), batch)
    losses, statistics = loss.total, loss.statistics
    return losses.squeeze(0), SoftTargetStats(*(total.squeeze(0) for total in statistics))


def play_interval(
    method: Method, epoch: int, scores: list[tuple[float, float]], average: tuple[float, float] = (0.0, 9.0)
) -> tuple[Plan, Outcome]:
    """Feed one interval with random logits and the given held-out scores, those of any average of candidates last.

    Events of its epochs follow those of the plan.
    """
    plan = method.begin_interval(epoch)
    interval, training = plan.interval, TrainingStatistics(1.0, 0.5, 0.4, 1.0)
    generator = torch.Generator().manual_seed(epoch)
    judged = [metrics(*scores[slot % len(scores)]) for slot in range(interval.candidates)]
    for _ in range(interval.epochs):
        for slot in range(interval.candidates):
            labels = torch.arange(3 * CLASSES) % CLASSES
            logits = 2.0 * torch.randn(len(labels), CLASSES, generator=generator)
            one_loss(method, logits, labels, slot)
        events = method.end_epoch([EpochResult(training, result) for result in judged])
        plan = replace(plan, events=[*plan.events, *events])
    results = [IntervalResult(training, result, result, result) for result in judged]
    return plan, method.end_interval(results, lambda slots: AverageResult(metrics(*average), metrics(*average)))


def play(method: Method, epochs: int, scores: list[tuple[float, float]]) -> list[tuple[Plan, Outcome]]:
    """All intervals of a run."""
    played: list[tuple[Plan, Outcome]] = []
    epoch = 0
    while epoch < epochs:
        played.append(play_interval(method, epoch, scores))
        epoch = played[-1][0].interval.end
    return played


def run_interval(method: Method, epoch: int, scores: list[tuple[float, float]]) -> tuple[int, int, list[Event]]:
    """One interval's end, its winner, and its events."""
    plan, outcome = play_interval(method, epoch, scores)
    return plan.interval.end, outcome.survivors[0], [*plan.events, *outcome.events]


def run(method: Method, epochs: int, scores: list[tuple[float, float]]) -> list[Event]:
    return [event for plan, outcome in play(method, epochs, scores) for event in (*plan.events, *outcome.events)]


def of_kind(events: Sequence[Event], kind: type[EventT]) -> list[EventT]:
    return [event for event in events if isinstance(event, kind)]


def test_ce_is_the_cross_entropy_of_torch() -> None:
    method = build("ce")
    method.begin_interval(0)
    logits, labels = torch.randn(7, CLASSES, requires_grad=True), torch.randint(CLASSES, (7,))
    loss, statistics = one_loss(method, logits, labels)
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits, retain_graph=True), torch.autograd.grad(expected, logits)
    )
    assert statistics.correct.item() == (logits.argmax(1) == labels).sum().item()


def test_label_smoothing_pulls_towards_its_target() -> None:
    method = build("label-smoothing", target={"smoothing": 0.2})
    method.begin_interval(0)
    logits, labels = torch.randn(7, CLASSES, requires_grad=True), torch.randint(CLASSES, (7,))
    (gradient,) = torch.autograd.grad(one_loss(method, logits, labels)[0], logits)
    target = torch.full((7, CLASSES), 0.2 / (CLASSES - 1)).scatter(1, labels.unsqueeze(1), 0.8)
    torch.testing.assert_close(gradient, (logits.softmax(1) - target).detach() / 7)


def test_a_scripted_target_is_non_progressive_and_the_log_shows_it() -> None:
    schedule = {"name": "schedule", "true_mass": (0.9, 0.6, 0.95), "warmup_epochs": 0}
    events = run(build("tfkd", epochs=4, controller=schedule), 4, [(0.5, 1.0)])
    candidates = [event.candidates[0] for event in of_kind(events, TargetsDecided)]
    assert [c.true_mass for c in candidates] == pytest.approx([0.9, 0.75, 0.6, 0.775], abs=1e-6)
    divergences = [c.divergence for c in candidates]
    assert divergences == pytest.approx([-math.log(m) for m in (0.9, 0.75, 0.6, 0.775)], abs=1e-6)
    assert divergences[0] < divergences[1] < divergences[2] > divergences[3]


def test_warm_up_is_plain_cross_entropy_of_one_candidate() -> None:
    method = build("tfkd-mrs", controller={"warmup_epochs": 3})
    plan = method.begin_interval(0)
    assert (plan.interval.epochs, plan.interval.candidates) == (3, 1)
    logits, labels = torch.randn(4, CLASSES), torch.randint(CLASSES, (4,))
    torch.testing.assert_close(one_loss(method, logits, labels)[0], F.cross_entropy(logits, labels))


def test_a_short_run_is_controlled_too() -> None:
    events = run(build("tfkd-mrs", epochs=2), 2, [(0.5, 1.0), (0.6, 0.9)])
    assert [event.epochs for event in of_kind(events, TargetsDecided)] == [2]
    assert len(of_kind(events, CandidateSelected)) == 1


def test_mrs_logs_actions_ranks_rewards_and_the_winner() -> None:
    method = build("tfkd-mrs", controller={"warmup_epochs": 2}, selection={"candidates": 3, "interval": 5})
    events = run(method, 12, [(0.50, 1.00), (0.60, 0.90), (0.55, 0.95)])
    assert [event.epochs for event in of_kind(events, TargetsDecided)] == [2, 5, 5]
    assert [c.role for c in of_kind(events, TargetsDecided)[1].candidates] == ["mean", "sample", "sample"]
    assert [c.role for c in of_kind(events, TargetsDecided)[2].candidates] == ["mean", "elite", "sample"]
    for selection in of_kind(events, CandidateSelected):
        assert selection.winner == 1
        assert selection.ranks == ((3, 3, 3), (1, 1, 1), (2, 2, 2))
    for reward in of_kind(events, ControllerRewarded):
        assert sum(reward.rewards) == pytest.approx(0, abs=1e-9)
        assert max(reward.rewards) == reward.rewards[1]


def test_the_winners_action_and_similarities_go_to_all() -> None:
    method = build("tfkd-mrs", epochs=4, controller={"warmup_epochs": 1}, selection={"candidates": 3, "interval": 1})
    epoch, _, _ = run_interval(method, 0, [(0.3, 2.0)])
    _, winner, events = run_interval(method, epoch, [(0.5, 1.0), (0.4, 1.1), (0.6, 0.9)])
    assert winner == 2
    played = of_kind(events, TargetsDecided)[0].candidates[2].action
    similarity = method.state_dict()["teaching"]["similarity"]["similarity"]
    assert torch.equal(similarity[0], similarity[2])
    assert torch.equal(similarity[1], similarity[2])
    (decision,) = method.begin_interval(2).events
    assert decision.candidates[1].role == "elite"
    assert decision.candidates[1].action == played


AVERAGED = {"candidates": 3, "interval": 2, "average": "best-two", "criteria": ["holdout-nll", "holdout-top1"]}


def test_training_continues_from_an_average_that_ranks_first() -> None:
    method = build("tfkd-mrs", epochs=4, controller={"warmup_epochs": 0}, selection=AVERAGED)
    plan, outcome = play_interval(method, 0, [(0.5, 1.0), (0.4, 1.1), (0.6, 0.9)], average=(0.7, 0.8))
    assert (outcome.survivors, outcome.averaged) == ((2,), (2, 0))
    (selection,) = of_kind(outcome.events, CandidateSelected)
    assert (selection.winner, selection.best_candidate, selection.averaged) == (3, 2, (2, 0))
    assert selection.values[3] == (0.8, 0.7)
    (taught,) = of_kind(outcome.events, TargetApplied)
    actions = [candidate.action for candidate in of_kind(plan.events, TargetsDecided)[0].candidates]
    assert taught.action == pytest.approx([(a + b) / 2 for a, b in zip(actions[2], actions[0], strict=True)])
    (reward,) = of_kind(outcome.events, ControllerRewarded)
    assert max(reward.rewards) == reward.rewards[2]  # candidates are rewarded, and not their average
    (decision,) = of_kind(method.begin_interval(2).events, TargetsDecided)
    assert decision.progress is not None
    assert decision.progress["holdout_top1"] == 0.7
    assert decision.progress["holdout_nll"] == 0.8


def test_the_memories_of_an_average_are_the_mean_of_its_members() -> None:
    method = build("tfkd-mrs", epochs=4, controller={"warmup_epochs": 0}, selection=AVERAGED)

    plan = method.begin_interval(0)
    assert plan.interval.candidates == 3
    training, result = TrainingStatistics(1.0, 0.5, 0.4, 1.0), [metrics(0.5, 1.0), metrics(0.4, 1.1), metrics(0.6, 0.9)]
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for slot in range(3):
            logits = 2.0 * torch.randn(3 * CLASSES, CLASSES, generator=generator)
            one_loss(method, logits, torch.arange(3 * CLASSES) % CLASSES, slot)
        method.end_epoch([EpochResult(training, own) for own in result])
    memory = [tensor.clone() for tensor in method.candidate_tensors().values()]
    average = AverageResult(metrics(0.7, 0.8), None)
    method.end_interval([IntervalResult(training, own, own, own) for own in result], lambda slots: average)
    for before, after in zip(memory, method.candidate_tensors().values(), strict=True):
        expected = (before[2].double() + before[0].double()) / 2
        for slot in range(3):
            torch.testing.assert_close(after[slot].double(), expected)


def test_candidates_with_a_shared_memory_are_taught_by_the_mean_of_their_predictions() -> None:
    target = {"family": "scalar", "sources": ("memory",), "shared_memory": True}
    method = build(
        "tfkd-mrs", target=target, controller={"warmup_epochs": 0}, selection={"candidates": 3, "interval": 4}
    )
    method.begin_interval(0)
    labels, predicted = torch.arange(CLASSES), []
    for slot in range(3):
        logits = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(slot))
        one_loss(method, logits, labels, slot)
        predicted.append(logits.softmax(dim=-1))
    sound, lost = TrainingStatistics(1.0, 0.5, 0.4, 1.0), TrainingStatistics(math.nan, math.nan, math.nan, math.nan)
    method.end_epoch([EpochResult(sound, None), EpochResult(lost, None), EpochResult(sound, None)])
    remembered = method.candidate_tensors()["instances"][:, :CLASSES].float().softmax(dim=-1)
    mean = (predicted[0] + predicted[2]) / 2  # without the one that diverged
    for slot, expected in enumerate((mean, predicted[1], mean)):
        torch.testing.assert_close(remembered[slot], expected, rtol=2e-3, atol=1e-4)


def test_an_average_that_does_not_rank_first_changes_nothing() -> None:
    played = [
        play(
            build("tfkd-mrs", epochs=4, controller={"warmup_epochs": 0}, selection=settings),
            4,
            [(0.5, 1.0), (0.4, 1.1)],
        )
        for settings in (AVERAGED, {key: value for key, value in AVERAGED.items() if key != "average"})
    ]
    for (_, with_average), (_, without) in zip(*played, strict=True):
        assert (with_average.survivors, with_average.averaged) == (without.survivors, ())
        (first,), (second,) = (of_kind(outcome.events, CandidateSelected) for outcome in (with_average, without))
        assert first.order[:-1] == second.order
        assert of_kind(with_average.events, TargetApplied) == of_kind(without.events, TargetApplied)


def test_an_average_is_ranked_by_its_own_average_over_the_interval() -> None:
    """Its weights at one moment would lose by what all averages over epochs gain."""
    criteria = {"criteria": ["averaged-top1"], "average": "all", "candidates": 2, "interval": 2}
    method = build("tfkd-mrs", epochs=4, controller={"warmup_epochs": 0}, selection=criteria)
    training, own = TrainingStatistics(1.0, 0.5, 0.4, 1.0), [metrics(0.5, 1.0), metrics(0.5, 1.1)]
    averaged = [metrics(0.6, 0.9), metrics(0.61, 0.9)]
    method.begin_interval(0)
    for _ in range(2):
        method.end_epoch([EpochResult(training, result) for result in own])
    results = [IntervalResult(training, now, now, mean) for now, mean in zip(own, averaged, strict=True)]
    outcome = method.end_interval(results, lambda slots: AverageResult(metrics(0.55, 0.9), metrics(0.62, 0.8)))
    (selection,) = of_kind(outcome.events, CandidateSelected)
    assert selection.values == ((0.6,), (0.61,), (0.62,))
    assert outcome.averaged == (1, 0)


COURSE = {"name": "schedule", "true_mass": (0.5, 0.9)}
"""A true mass of 0.5 + 0.4 e / 12 in epoch e, counted from 0, of 12."""


@pytest.mark.parametrize(
    ("interval", "selection"),
    [
        (1, {"candidates": 3, "interval": 6}),
        (2, {"candidates": 2, "interval": 4, "start": 0.5, "average": "all"}),
        (1, {"budget": "probe", "candidates": 2, "interval": 3, "events": (0.3, 0.7)}),
        (1, {"budget": "halving", "candidates": 2, "halving_epochs": 2, "learning_rate_spread": 0.1}),
    ],
)
def test_a_schedule_goes_on_while_candidates_train(interval: int, selection: dict[str, Any]) -> None:
    target = {"family": "scalar", "sources": ()}
    method = build("tfkd-mrs", target=target, controller=COURSE | {"interval": interval}, selection=selection)
    events = run(method, 12, HALVED)
    decisions, taught = of_kind(events, TargetsDecided), of_kind(events, TargetApplied)
    for decision in decisions:
        mass = 0.5 + 0.4 * (decision.first_epoch - 1) / 12
        assert [target.true_mass for target in decision.candidates] == pytest.approx([mass] * len(decision.candidates))
        assert decision.epochs <= interval
    assert tiles(taught, 12)
    assert [(event.first_epoch, event.true_mass) for event in taught] == [
        (decision.first_epoch, decision.candidates[0].true_mass) for decision in decisions
    ]


def test_a_policy_that_is_played_sees_its_action_before_within_an_interval(tmp_path: Path) -> None:
    """What it observes of the action before is a quarter of it."""
    learner, learned = build("tfkd-mrs"), tmp_path / "policy.safetensors"
    run(learner, 12, HALVED)
    learned.write_bytes(learner.files()["policy.safetensors"])
    controller = {"name": "policy", "policy": str(learned), "interval": 1, "warmup_epochs": 0}
    target, selection = {"family": "rank-binned", "sources": ()}, {"candidates": 2, "interval": 4}
    events = run(build("tfkd-mrs", target=target, controller=controller, selection=selection), 8, HALVED)
    decisions = of_kind(events, TargetsDecided)
    assert [decision.first_epoch for decision in decisions] == [*range(1, 9)]
    actions = [decision.candidates[0].action for decision in decisions]
    assert any(actions[0])
    for before, decision in zip(actions, decisions[1:], strict=False):
        assert decision.observation is not None
        assert [4 * value for value in decision.observation[-len(before) :]] == pytest.approx(before, abs=1e-6)


def test_a_controller_that_learns_from_comparisons_waits_for_them() -> None:
    selection = {"candidates": 3, "interval": 4}
    decisions = of_kind(
        run(build("tfkd-mrs", controller={"warmup_epochs": 0}, selection=selection), 12, HALVED), TargetsDecided
    )
    assert [decision.first_epoch for decision in decisions] == [1, 5, 9]


def test_averages_are_judged_within_an_interval_for_controllers_that_observe_alone() -> None:
    assert build("tfkd-mrs", controller={"name": "policy", "policy": "default"}).needs.judges_epochs
    assert not build("tfkd-mrs", target={"family": "scalar", "sources": ()}, controller=COURSE).needs.judges_epochs
    assert not build("tfkd-mrs", controller={"name": "ppo"}).needs.judges_epochs  # waits for comparisons


def test_a_restored_method_goes_on_with_a_schedule_within_an_interval() -> None:
    def begin() -> Method:
        target, selection = {"family": "scalar", "sources": ()}, {"candidates": 2, "interval": 6}
        return build("tfkd-mrs", target=target, controller=COURSE, selection=selection)

    method, restored, training = begin(), begin(), TrainingStatistics(1.0, 0.5, 0.4, 1.0)
    scores = [EpochResult(training, metrics(0.5, 1.0)), EpochResult(training, metrics(0.4, 1.1))]
    method.begin_interval(0)
    for _ in range(3):
        method.end_epoch(scores)
    restored.load_state_dict(copy.deepcopy(method.state_dict()))
    results = [IntervalResult(result.training, *[result.holdout] * 3) for result in scores]
    ends = []
    for each in (method, restored):
        events = [event for _ in range(3) for event in each.end_epoch(scores)]
        outcome = each.end_interval(results, lambda slots: AverageResult(metrics(0.0, 9.0), None))
        ends.append((events, list(outcome.events)))
    assert repr(ends[0]) == repr(ends[1])
    assert [event.first_epoch for event in of_kind(ends[0][1], TargetApplied)] == [1, 2, 3, 4, 5, 6]


def test_a_learning_rate_drop_is_not_credited_to_a_single_trajectory() -> None:
    def ratio(epoch: int) -> float:
        return 1.0 if epoch < 3 else 0.1

    def masked(cooldown_epochs: int) -> list[bool]:
        controller = {"warmup_epochs": 0, "cooldown_epochs": cooldown_epochs}
        method = build("tfkd", epochs=6, ratio=ratio, controller=controller)
        return [math.isnan(event.rewards[0]) for event in of_kind(run(method, 6, [(0.5, 1.0)]), ControllerRewarded)]

    assert masked(0) == [False, False, False, True, False, False]
    assert not any(masked(1))  # judged at a rate of zero before and after the drop


@pytest.mark.parametrize("name", ["ce", "label-smoothing", "tfkd", "tfkd-mrs"])
@pytest.mark.parametrize("stop", [2, 3, 7])
def test_a_restored_method_goes_on_as_if_it_had_not_stopped(name: str, stop: int) -> None:
    tables = {"controller": {"warmup_epochs": 2}} if name.startswith("tfkd") else {}

    def make() -> Method:
        return build(name, **tables, **({"selection": {"interval": 1}} if name == "tfkd-mrs" else {}))

    scores = [(0.5, 1.0), (0.6, 0.9), (0.55, 0.95)]
    whole, first, second = make(), make(), make()
    expected = run(whole, 12, scores)
    events: list[Event] = []
    epoch = 0
    while epoch < 12:
        if epoch == stop:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            first = second
        epoch, _, more = run_interval(first, epoch, scores)
        events += more
    assert repr(events) == repr(expected)  # repr, because NaN differs from itself


def test_restored_in_the_middle_of_an_interval_the_target_is_the_same() -> None:
    method, restored = (build("tfkd-mrs", controller={"warmup_epochs": 0}) for _ in range(2))
    plan = method.begin_interval(0)
    logits, labels = torch.randn(20, CLASSES), torch.randint(CLASSES, (20,))
    for slot in range(plan.interval.candidates):
        one_loss(method, logits + slot, labels, slot)
    training = TrainingStatistics(1.0, 0.5, 0.4, 1.0)
    method.end_epoch([EpochResult(training, metrics(0.5, 1.0))] * plan.interval.candidates)
    restored.load_state_dict(copy.deepcopy(method.state_dict()))
    for slot in range(plan.interval.candidates):
        assert torch.equal(one_loss(method, logits, labels, slot)[0], one_loss(restored, logits, labels, slot)[0])


def test_a_controller_with_nothing_to_control_is_refused() -> None:
    with pytest.raises(UserError, match=r"ppo controller has nothing to set in the one-hot target"):
        build("ce", controller={"name": "ppo"})


def test_candidates_may_share_their_data_order() -> None:
    at_once = {"controller": {"warmup_epochs": 0}}
    own = build("tfkd-mrs", **at_once)
    shared = build("tfkd-mrs", selection={"data_order": "shared"}, **at_once)
    assert own.begin_interval(0).streams == tuple(zip(range(4), range(4), strict=True))
    assert shared.begin_interval(0).streams == ((0, 0),) * 4


# Several candidates: successive halving, one action for all, peers, learning rates.

HALVED = [(top1, 1 - top1) for top1 in (0.50, 0.57, 0.52, 0.56, 0.51, 0.55, 0.53, 0.54)]
"""The best four of eight are 1, 3, 5, 7; the best two of these, judged by the first four scores, the second and the
fourth; and of these the second."""


def halving(epochs: int = 18, **selection: Any) -> Method:
    """One epoch of warm-up, two rounds of 1 + 2 + 4 epochs, and what is left with one student."""
    tables = {"budget": "halving", "candidates": 4, **selection}
    return build("tfkd-mrs", epochs, controller={"warmup_epochs": 1}, selection=tables)


def test_halving_decides_once_a_round_and_is_rewarded_in_every_rung() -> None:
    played = play(halving(), 18, HALVED)
    assert [plan.interval.epochs for plan, _ in played] == [1, 1, 2, 4, 1, 2, 4, 1, 1, 1]
    assert [plan.interval.candidates for plan, _ in played] == [1, 8, 4, 2, 8, 4, 2, 1, 1, 1]
    assert [outcome.survivors for _, outcome in played] == [
        (0,), (1, 3, 5, 7), (1, 3), (1,), (1, 3, 5, 7), (1, 3), (1,), (0,), (0,), (0,),
    ]  # fmt: skip
    decided = [[event.first_epoch for event in of_kind(plan.events, TargetsDecided)] for plan, _ in played]
    assert decided == [[1], [2], [], [], [9], [], [], [16], [17], [18]]
    rewarded = [[len(event.rewards) for event in of_kind(outcome.events, ControllerRewarded)] for _, outcome in played]
    assert rewarded == [[], [8], [4], [2], [8], [4], [2], [1], [1], [1]]
    for plan, outcome in played[1:7]:
        (reward,) = of_kind(outcome.events, ControllerRewarded)
        order = sorted(range(plan.interval.candidates), key=lambda slot: HALVED[slot], reverse=True)
        assert sorted(order, key=reward.rewards.__getitem__, reverse=True) == order
        (selected,) = of_kind(outcome.events, CandidateSelected)
        assert selected.survivors == outcome.survivors == tuple(order[: len(outcome.survivors)])


def test_a_decision_of_halving_is_told_with_all_epochs_of_its_round() -> None:
    decisions = of_kind(run(halving(), 18, HALVED), TargetsDecided)
    assert [(decision.first_epoch, decision.epochs) for decision in decisions] == [
        (1, 1), (2, 7), (9, 7), (16, 1), (17, 1), (18, 1),
    ]  # fmt: skip


def test_what_a_round_of_halving_taught_is_logged_once_with_the_survivors_action() -> None:
    events = run(halving(), 18, HALVED)
    taught = of_kind(events, TargetApplied)
    assert [(event.first_epoch, event.epochs) for event in taught] == [
        (1, 1), (2, 7), (9, 7), (16, 1), (17, 1), (18, 1),
    ]  # fmt: skip
    decisions = of_kind(events, TargetsDecided)
    for event, decision, slot in zip(taught[1:], decisions[1:], [7, 7, 0, 0, 0], strict=True):
        candidate = decision.candidates[slot]  # the fourth of the best four, then the second, is 7 of 8
        assert event.action == candidate.action
        assert event.true_mass == candidate.true_mass
        assert event.divergence == candidate.divergence
    assert taught[0].action is None
    assert len({tuple(candidate.action) for candidate in decisions[1].candidates}) == 8


def test_survivors_of_a_rung_are_taught_as_before_at_the_learning_rate_that_they_had() -> None:
    method: Any = halving(learning_rate_spread=0.5)
    play_interval(method, 0, HALVED)
    slots, epoch = list(range(8)), 1
    masses: dict[int, float] = {}
    factors: dict[int, float] = {}
    for _ in range(3):
        plan, outcome = play_interval(method, epoch, HALVED)
        assert plan.learning_rate_factors is not None
        for slot, first in enumerate(slots):
            mass, factor = method.teaching.true_mass(slot), plan.learning_rate_factors[slot]
            assert mass == masses.setdefault(first, mass)
            assert factor == factors.setdefault(first, factor)
        slots, epoch = [slots[survivor] for survivor in outcome.survivors], plan.interval.end
    assert slots == [7]
    assert len(set(masses.values())) == len(set(factors.values())) == 8
    (taught,) = of_kind(outcome.events, TargetApplied)
    assert taught.learning_rate_factor == factors[7]


@pytest.mark.parametrize("stop", [1, 2, 4, 8, 9, 11])
def test_halving_restored_between_rungs_goes_on_as_if_it_had_not_stopped(stop: int) -> None:
    expected = run(halving(learning_rate_spread=0.5), 18, HALVED)
    first, second = halving(learning_rate_spread=0.5), halving(learning_rate_spread=0.5)
    events: list[Event] = []
    epoch = 0
    while epoch < 18:
        if epoch == stop:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            first = second
        epoch, _, more = run_interval(first, epoch, HALVED)
        events += more
    assert first is second
    assert repr(events) == repr(expected)


def test_one_action_for_all_candidates_is_learned_from_as_a_single_trajectory() -> None:
    """The best candidate stands for all: its scores are those of the run."""
    controller = {"warmup_epochs": 0, "single_buffer": 2}
    shared = {"candidates": 3, "interval": 1, "target": "shared"}
    scores = [(0.50, 1.00), (0.60, 0.90), (0.55, 0.95)]
    events = run(build("tfkd-mrs", 6, controller=controller, selection=shared), 6, scores)
    alone = run(build("tfkd", 6, controller=controller), 6, [(0.60, 0.90)])
    for decision, single in zip(of_kind(events, TargetsDecided), of_kind(alone, TargetsDecided), strict=True):
        actions = [candidate.action for candidate in decision.candidates]
        assert actions == 3 * [single.candidates[0].action]
        assert [candidate.role for candidate in decision.candidates] == ["sample"] * 3
        assert decision.observation == single.observation
    assert all(event.winner == 1 for event in of_kind(events, CandidateSelected))
    rewards, of_single = of_kind(events, ControllerRewarded), of_kind(alone, ControllerRewarded)
    assert repr(rewards) == repr(of_single)
    assert [event.update is not None for event in rewards] == [False, True] * 3
    assert rewards[0].rewards[0] > 0


def test_learning_rate_factors_reach_the_plan_and_the_log() -> None:
    selection = {"budget": "full", "candidates": 3, "interval": 2, "learning_rate_spread": 0.3}
    played = play(
        build("tfkd-mrs", 9, controller={"warmup_epochs": 1}, selection=selection), 9, [(0.5, 1.0), (0.6, 0.9)]
    )
    assert played[0][0].learning_rate_factors is None
    for number, (plan, outcome) in enumerate(played[1:], start=1):
        expected = learning_rate_factors(0.3, 0, number, 3)
        assert plan.learning_rate_factors == expected
        assert len(set(expected)) == 3
        (decision,), (taught,) = of_kind(plan.events, TargetsDecided), of_kind(outcome.events, TargetApplied)
        assert tuple(candidate.learning_rate_factor for candidate in decision.candidates) == expected
        assert taught.learning_rate_factor == expected[1] == expected[outcome.survivors[0]]


def test_peers_without_selection_stay_side_by_side_to_the_end() -> None:
    method = build("tfkd", 6, target={"sources": ["peers"], "peers": 3})
    assert (method.needs.candidates, method.needs.joint_steps) == (3, True)
    result = metrics(0.5, 1.0)
    for plan in (method.begin_interval(0), method.begin_interval(1)):
        assert plan.interval.candidates == 3
        training = TrainingStatistics(1.0, 0.5, 0.4, 1.0)
        for _ in range(plan.interval.epochs):
            method.end_epoch([EpochResult(training, result)] * 3)
        outcome = method.end_interval([IntervalResult(training, result, result, None)] * 3, lambda slots: result)
        assert outcome.survivors == (0, 1, 2)
        (decision,) = plan.events
        assert len({tuple(candidate.action) for candidate in decision.candidates}) == 1
        assert of_kind(outcome.events, CandidateSelected) == []
    assert len(of_kind(outcome.events, ControllerRewarded)[0].rewards) == 1


# What was taught, and superclasses.


def tiles(taught: list[TargetApplied], epochs: int) -> bool:
    """Whether the intervals of these events follow each other from the first epoch to the last."""
    ends = [event.first_epoch + event.epochs for event in taught]
    return [event.first_epoch for event in taught] == [1, *ends[:-1]] and ends[-1] == epochs + 1


@pytest.mark.parametrize(
    ("name", "alone", "selection"),
    [
        ("tfkd", {"interval": 3}, {}),
        ("tfkd-mrs", {}, {"candidates": 3, "interval": 4}),
        ("tfkd-mrs", {"interval": 3}, {"budget": "probe", "candidates": 2, "interval": 2, "events": (0.3, 0.7)}),
        ("tfkd-mrs", {"interval": 3}, {"budget": "halving", "candidates": 2}),
        ("tfkd-mrs", {"interval": 3}, {"budget": "halving", "candidates": 2, "target": "shared"}),
    ],
)
def test_what_was_taught_tiles_the_run(name: str, alone: dict[str, Any], selection: dict[str, Any]) -> None:
    events = run(build(name, controller={"warmup_epochs": 2, **alone}, selection=selection), 12, HALVED)
    taught = of_kind(events, TargetApplied)
    assert tiles(taught, 12)
    assert [event.first_epoch for event in taught] == [e.first_epoch for e in of_kind(events, TargetsDecided)]


@pytest.mark.parametrize(
    ("true_mass", "rises", "nats"),
    [((0.9, 0.6, 0.95), 2, math.log(0.9 / 0.6)), ((0.6, 0.99), 0, 0.0), ((0.9, 0.9), 0, 0.0)],
)
def test_the_summary_counts_how_often_the_target_moved_away_from_one_hot(
    true_mass: tuple[float, ...], rises: int, nats: float
) -> None:
    """At 0, 1/4, 1/2 and 3/4 of the run."""
    method = build("tfkd", 4, controller={"name": "schedule", "true_mass": true_mass, "warmup_epochs": 0})
    events = run(method, 4, [(0.5, 1.0)])
    divergences = [
        -math.log(mass) for mass in np.interp([0, 0.25, 0.5, 0.75], np.linspace(0, 1, len(true_mass)), true_mass)
    ]
    assert [event.divergence for event in of_kind(events, TargetApplied)] == pytest.approx(divergences, abs=1e-6)
    summary = method.summary()
    assert summary["divergence_rises"] == rises
    assert summary["divergence_rise_nats"] == pytest.approx(nats, abs=1e-6)
    assert summary["divergence_first"] == pytest.approx(divergences[0], abs=1e-6)
    assert summary["divergence_last"] == pytest.approx(divergences[-1], abs=1e-6)


def test_the_warm_up_is_no_part_of_how_the_target_moved() -> None:
    """From one-hot to the first target there is a rise that nobody chose."""
    schedule = {"name": "progressive", "true_mass": (0.6, 0.99), "warmup_epochs": 2}
    method = build("tfkd", 12, controller=schedule)
    events = run(method, 12, [(0.5, 1.0)])
    assert of_kind(events, TargetApplied)[0].divergence == 0.0
    assert method.summary()["divergence_rises"] == 0


def test_a_method_that_steers_nothing_sums_nothing_up() -> None:
    for method in (build("ce"), build("ce", selection={"budget": "full", "candidates": 2})):
        run(method, 12, [(0.5, 1.0), (0.6, 0.9)])
        assert method.summary() == {}


EVERY_EPOCH = {"selection": {"interval": 1}}
SHARED = {"selection": {"interval": 1, "target": "shared"}}
UNREAD: list[tuple[str, dict[str, Any], str, dict[str, Any], str, dict[str, Any]]] = [
    ("tfkd", {"target": {"family": "scalar"}}, "controller", {"warmup_epochs": 1}, "tfkd", {}),
    ("tfkd-mrs", {}, "controller", {"interval": 2}, "tfkd", {}),
    ("tfkd", {}, "controller", {"group_buffer": 1}, "tfkd-mrs", EVERY_EPOCH),
    ("tfkd-mrs", SHARED, "controller", {"group_buffer": 1}, "tfkd-mrs", EVERY_EPOCH),
    ("tfkd-mrs", {}, "controller", {"single_buffer": 2}, "tfkd", {}),
    ("tfkd-mrs", {}, "controller", {"discount": 0.0}, "tfkd-mrs", SHARED),
    ("tfkd-mrs", {}, "controller", {"gae_lambda": 0.0}, "tfkd", {}),
    ("tfkd-mrs", {"controller": {"name": "progressive"}}, "selection", {"target": "shared"}, "tfkd-mrs", {}),
    ("tfkd-mrs", {"controller": {"name": "fixed"}}, "selection", {"target": "shared"}, "tfkd-mrs", {}),
]
"""A method and tables under which a key is refused, the key with a value, and a method and tables that read it."""


@pytest.mark.parametrize(("name", "tables", "table", "value", "reading", "read"), UNREAD)
def test_a_key_that_is_refused_would_change_nothing(
    name: str, tables: dict[str, Any], table: str, value: dict[str, Any], reading: str, read: dict[str, Any]
) -> None:
    def taught(method: str, given: dict[str, Any], more: dict[str, Any]) -> list[Event]:
        built = build(method, 12, checked=UNREAD_TOO, **{**given, table: given.get(table, {}) | more})
        events: list[Event] = []
        epoch = 0
        while epoch < 12:
            uneven = [(0.5, 1.0 - 0.01 * ((3 * epoch + 5 * slot) % 7)) for slot in range(4)]
            epoch, _, seen = run_interval(built, epoch, uneven)
            events += of_kind(seen, TargetApplied)
        return events

    with pytest.raises(ValueError, match="is read only where"):
        build(name, **{**tables, table: tables.get(table, {}) | value})
    assert taught(name, tables, value) == taught(name, tables, {})
    assert taught(reading, read, value) != taught(reading, read, {})


def test_superclasses_of_the_data_set_reach_the_target() -> None:
    """Class 0 keeps 0.6 to itself and shares the rest with its superclass, {0, 2, 4}, and with {1, 3}."""
    superclasses = {"even": (0, 2, 4), "odd": (1, 3)}
    neutral, low, high = 0.4 / 0.499, 0.5, 0.999
    number = math.log((0.6 - low) / (high - 0.6)) - math.log(neutral / (1 - neutral))
    controller = {"name": "fixed", "action": (number, 0.0, 1.0)}
    method = build("tfkd", superclasses=superclasses, target={"family": "superclass"}, controller=controller)
    (decision,) = method.begin_interval(0).events
    assert decision.action_names == ("true mass of even", "true mass of odd", "siblings")
    logits, labels = torch.randn(1, CLASSES, requires_grad=True), torch.tensor([0])
    (gradient,) = torch.autograd.grad(one_loss(method, logits, labels)[0], logits)
    siblings = 2 * math.e / (2 * math.e + 2)
    target = torch.tensor([0.6, 0.2 * (1 - siblings), 0.2 * siblings, 0.2 * (1 - siblings), 0.2 * siblings])
    torch.testing.assert_close(gradient[0], (logits.softmax(1)[0] - target).detach())


def test_a_superclass_target_needs_superclasses() -> None:
    with pytest.raises(UserError, match="the superclass target needs superclasses, and this data set has none"):
        build("tfkd", target={"family": "superclass"})


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("ce", {"selection": {"budget": "full", "data_order": "shared"}}),
        ("tfkd-mrs", {"controller": {"name": "fixed"}, "selection": {"data_order": "shared"}}),
        ("tfkd-mrs", {"target": {"sources": ("peers",)}, "selection": {"target": "shared"}}),
        ("tfkd-mrs", {"target": {"sources": ("peers",)}, "controller": {"name": "hypergradient"}}),
    ],
)
def test_candidates_that_nothing_tells_apart_are_refused(name: str, tables: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"all candidates would be alike: set selection\.learning_rate_spread above 0"):
        build(name, **tables)
    build(name, **tables | {"selection": tables.get("selection", {}) | {"learning_rate_spread": 0.1}})
