"""The method without a network: its intervals, its loss, what it logs, what survives, and its state."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tfkd_fast.errors import UserError
from tfkd_fast.methods import Context, Method, find_method
from tfkd_fast.methods.protocol import (
    EpochResult,
    Event,
    HoldoutMetrics,
    IntervalResult,
    StepBatch,
    TrainingStatistics,
)
from tfkd_fast.ops import SoftTargetStats

CLASSES = 5
IMAGES = 20


def build(name: str, epochs: int = 12, ratio: Any = lambda epoch: 1.0, **tables: dict[str, Any]) -> Method:
    entry = find_method(name)
    merged = {key: entry.preset.get(key, {}) | tables.get(key, {}) for key in {*entry.preset, *tables}}
    settings = entry.settings.model_validate(merged)
    return entry.build(settings, Context(CLASSES, IMAGES, epochs, 0, torch.device("cpu"), ratio))


def metrics(top1: float, nll: float) -> HoldoutMetrics:
    return HoldoutMetrics(top1, 1.0, nll, nll, 1.0, 0.5, 0.1, 0.5, top1)


def one_loss(
    method: Method, logits: torch.Tensor, labels: torch.Tensor, slot: int = 0
) -> tuple[torch.Tensor, SoftTargetStats]:
    """Of one candidate: logits (B,C), labels (B,)."""
    batch = StepBatch(labels.unsqueeze(0), torch.arange(len(labels)).unsqueeze(0), None)
    losses, statistics = method.loss(logits.unsqueeze(0), batch, slice(slot, slot + 1))
    return losses.squeeze(0), SoftTargetStats(*(total.squeeze(0) for total in statistics))


def run_interval(method: Method, epoch: int, scores: list[tuple[float, float]]) -> tuple[int, int, list[Event]]:
    """Feed one interval with random logits and the given held-out scores; returns its end, the winner, the events."""
    plan = method.begin_interval(epoch)
    interval, training = plan.interval, TrainingStatistics(1.0, 0.5, 0.4, 1.0)
    generator = torch.Generator().manual_seed(epoch)
    judged = [metrics(*scores[slot % len(scores)]) for slot in range(interval.candidates)]
    for _ in range(interval.epochs):
        for slot in range(interval.candidates):
            labels = torch.arange(3 * CLASSES) % CLASSES
            logits = 2.0 * torch.randn(len(labels), CLASSES, generator=generator)
            one_loss(method, logits, labels, slot)
        method.end_epoch([EpochResult(training, result) for result in judged])
    outcome = method.end_interval([IntervalResult(training, result, result, result) for result in judged])
    return interval.end, outcome.survivors[0], [*plan.events, *outcome.events]


def run(method: Method, epochs: int, scores: list[tuple[float, float]]) -> list[Event]:
    events: list[Event] = []
    epoch = 0
    while epoch < epochs:
        epoch, _, more = run_interval(method, epoch, scores)
        events += more
    return events


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]


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
    candidates = [event["candidates"][0] for event in of_kind(events, "decision")]
    assert [c["true_mass"] for c in candidates] == pytest.approx([0.9, 0.75, 0.6, 0.775], abs=1e-6)
    divergences = [c["divergence"] for c in candidates]
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
    assert [event["epochs"] for event in of_kind(events, "decision")] == [2]
    assert len(of_kind(events, "selection")) == 1


def test_mrs_logs_actions_ranks_rewards_and_the_winner() -> None:
    method = build("tfkd-mrs", controller={"warmup_epochs": 2}, selection={"candidates": 3, "interval": 5})
    events = run(method, 12, [(0.50, 1.00), (0.60, 0.90), (0.55, 0.95)])
    assert [event["epochs"] for event in of_kind(events, "decision")] == [2, 5, 5]
    assert [c["role"] for c in of_kind(events, "decision")[1]["candidates"]] == ["mean", "sample", "sample"]
    assert [c["role"] for c in of_kind(events, "decision")[2]["candidates"]] == ["mean", "elite", "sample"]
    for selection in of_kind(events, "selection"):
        assert selection["winner"] == 1
        assert selection["ranks"] == ((3, 3, 3), (1, 1, 1), (2, 2, 2))
    for reward in of_kind(events, "reward"):
        assert sum(reward["rewards"]) == pytest.approx(0, abs=1e-9)
        assert max(reward["rewards"]) == reward["rewards"][1]


def test_the_winners_action_and_similarities_go_to_all() -> None:
    method = build("tfkd-mrs", epochs=4, controller={"warmup_epochs": 1}, selection={"candidates": 3, "interval": 1})
    epoch, _, _ = run_interval(method, 0, [(0.3, 2.0)])
    _, winner, events = run_interval(method, epoch, [(0.5, 1.0), (0.4, 1.1), (0.6, 0.9)])
    assert winner == 2
    played = of_kind(events, "decision")[0]["candidates"][2]["action"]
    similarity = method.state_dict()["teaching"]["similarity"]["similarity"]
    assert torch.equal(similarity[0], similarity[2])
    assert torch.equal(similarity[1], similarity[2])
    (decision,) = method.begin_interval(2).events
    assert decision["candidates"][1]["role"] == "elite"
    assert decision["candidates"][1]["action"] == played


def test_a_learning_rate_drop_is_not_credited_to_a_single_trajectory() -> None:
    def ratio(epoch: int) -> float:
        return 1.0 if epoch < 3 else 0.1

    method = build("tfkd", epochs=6, ratio=ratio, controller={"warmup_epochs": 0})
    rewards = [event["rewards"][0] for event in of_kind(run(method, 6, [(0.5, 1.0)]), "reward")]
    assert [math.isnan(reward) for reward in rewards] == [False, False, False, True, False, False]


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
    own = build("tfkd-mrs")
    shared = build("tfkd-mrs", selection={"data_order": "shared"})
    assert [own.data_stream(slot) for slot in range(3)] == [0, 1, 2]
    assert [shared.data_stream(slot) for slot in range(3)] == [0, 0, 0]
