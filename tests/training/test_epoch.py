"""Epochs of several candidates: the three ways to train them side by side, host waits, and CUDA graphs."""

import copy
import math
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.support.host_waits import watch_steps
from tests.support.threads import using_threads
from tfkd_fast import ops
from tfkd_fast.data import DataSettings, DataStream, Loader, make_loader, open_dataset
from tfkd_fast.device import Compute
from tfkd_fast.methods import Context, find_method
from tfkd_fast.methods.base import Plan
from tfkd_fast.methods.controlled.method import ControlledTargets
from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.runs.optimizer import AdamWSettings, OptimizerSettings, SGDSettings
from tfkd_fast.training.epoch import EpochRun, EpochTrainer
from tfkd_fast.training.population import Population

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BATCH = 32
IMAGES = 5 * BATCH + 7  # the last batch is smaller
SOURCES = ("memory", "peers", "slow-self")
SETTINGS = SGDSettings()

pytestmark = pytest.mark.usefixtures("exact_products")


def make(
    way: str, device: str = "cpu", *, candidates: int = 3, order: str = "own", dtype: torch.dtype = torch.float32,
    loader: str = "resident", compile: bool = False, width: float = 0.125, sources: tuple[str, ...] = (),
    on_batch: Callable[[int], None] = lambda images: None, optimizer: OptimizerSettings = SETTINGS,
) -> tuple[EpochTrainer, Population, ControlledTargets, Plan]:  # fmt: skip
    """A population on digits whose candidates differ by targets and rates, and by their data if `order` is own."""
    compute = Compute(torch.device(device), dtype, compile)
    settings = DataSettings(batch_size=BATCH, loader=loader)
    digits = open_dataset(settings)
    images = digits.read_train().subset(torch.arange(IMAGES))
    made_loader = make_loader(images, digits, settings, compute.device, dtype, seed=3)
    entry = find_method("tfkd-mrs")
    target: dict[str, Any] = {"family": "scalar"}
    if sources:
        target |= {"sources": sources, "source_share": 0.2}
    if "slow-self" in sources:
        target["slow_self_decay"] = 0.9
    at_once = {"warmup_epochs": 0} if sources else {}
    options: dict[str, Any] = {"target": target, "controller": {"name": "random", **at_once}}
    if candidates > 1:
        options["selection"] = {"budget": "full", "candidates": candidates, "data_order": order}
    context = Context(10, IMAGES, 4, 0, compute.device, lambda epoch: 1.0)
    method = ControlledTargets(entry.settings.model_validate(options), context)
    plan = replace(method.begin_interval(0), learning_rate_factors=tuple(1 + 0.1 * slot for slot in range(candidates)))

    def build() -> torch.nn.Module:
        model = compute.place(build_model(ModelSettings(width=width), 10, 1, seed=0))
        return model.double() if dtype is torch.float64 else model

    population = Population(build, candidates, optimizer, slow=method.needs.slow_decay is not None)
    return (
        EpochTrainer(population, method, made_loader, compute, optimizer, way, on_batch),
        population,
        method,
        plan,
    )


def schedule(epoch: int, rate: float) -> list[float]:
    """For each step: none is the rate of the step before."""
    steps = -(-IMAGES // BATCH)
    return [rate / (1 + epoch + step / steps) for step in range(steps)]


def train(trainer: EpochTrainer, plan: Plan, epochs: int = 2, rate: float = 0.05) -> list[EpochRun]:
    """The runs of the last epoch."""
    for epoch in range(epochs):
        runs = trainer.run(plan, epoch, schedule(epoch, rate), average=epoch == epochs - 1)
    return runs


@pytest.mark.parametrize("device", DEVICES)
def test_an_epoch_is_the_loop_that_one_writes_by_hand(device: str) -> None:
    trainer, population, method, plan = make("sequential", device, candidates=1)
    loader: Loader = trainer.loader
    model = copy.deepcopy(population.models[0]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    total, correct, average = 0.0, 0, None
    runs = train(trainer, plan)
    for epoch in range(2):
        total, correct, weights = 0.0, 0, []
        for step, batch in enumerate(loader.epoch(epoch)):
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + epoch + step / len(loader))
            logits = model(batch.images)
            loss = F.cross_entropy(logits, method.teaching.tables[0][batch.labels])
            entropy = -(method.teaching.tables[0] * method.teaching.tables[0].log()).nansum(1)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += (loss.item() - entropy.item()) * len(batch.labels)
            correct += (logits.argmax(1) == batch.labels).sum().item()
            weights.append([parameter.detach().clone() for parameter in model.parameters()])
        average = [torch.stack(values).mean(0) for values in zip(*weights, strict=True)]
    # the loss' own gradient is rounded otherwise than torch's; 12 steps at a high rate carry that on
    for ours, theirs in zip(population.models[0].parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    means = population.epoch_average.mean_weights(0)
    for (name, _), theirs in zip(model.named_parameters(), average, strict=True):
        torch.testing.assert_close(means[name], theirs, rtol=1e-3, atol=1e-4)
    assert runs[0].training.loss == pytest.approx(total / IMAGES, rel=1e-3)
    assert runs[0].training.top1 == pytest.approx(correct / IMAGES, abs=1.01 / IMAGES)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["sequential", "stacked"])
def test_updates_of_several_batches_are_those_of_a_loop_of_torch(way: str, device: str) -> None:
    """AdamW, clipped, with a moving average; updates of four batches, then of two, the last of which is smaller."""
    settings = AdamWSettings(name="adamw", weight_decay=0.1, clip_norm=0.5, accumulate=4, ema_decay=0.7)
    dtype, close = (torch.float64, 1e-9) if device == "cpu" else (torch.float32, 1e-3)
    trainer, population, method, plan = make(way, device, order="shared", dtype=dtype, optimizer=settings)
    model = copy.deepcopy(population.models[0]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    average.n_averaged.fill_(1)  # begins with the untrained weights, as timm's does
    train(trainer, plan, epochs=3, rate=0.01)
    for epoch in range(3):
        batches = list(trainer.loader.epoch(epoch))
        for start in (0, 4):
            window = batches[start : start + 4]
            images = sum(len(batch.labels) for batch in window)
            optimizer.param_groups[0]["lr"] = float(torch.tensor(schedule(epoch, 0.01)[start]))
            optimizer.zero_grad()
            for batch in window:
                loss = F.cross_entropy(model(batch.images), method.teaching.tables[0][batch.labels].to(dtype))
                (loss * len(batch.labels) / images).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            average.update_parameters(model)
    ours, theirs = population.ema_network(0).state_dict(), average.module.state_dict()
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(population.models[0].state_dict()[name], expected, rtol=close, atol=close)
        if expected.is_floating_point():
            torch.testing.assert_close(ours[name], theirs[name], rtol=close, atol=close)
        else:
            assert torch.equal(ours[name], expected)
    assert population.epoch_average.count == 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ["own", "shared"])
@pytest.mark.parametrize("way", ["streams", "stacked"])
def test_candidates_side_by_side_learn_what_they_learn_alone(way: str, order: str, device: str) -> None:
    # In float64 sums in another order differ by 1e-16 a step, which 12 steps carry on. CUDA has float32 only: 1e-7 a
    # step, at a rate that carries little of it on.
    dtype, rate, close = (torch.float64, 0.05, 1e-9) if device == "cpu" else (torch.float32, 1e-3, 1e-4)
    trainer, population, _, plan = make("sequential", device, order=order, dtype=dtype)
    expected = train(trainer, plan, rate=rate)
    other, others, _, plan = make(way, device, order=order, dtype=dtype)
    results = train(other, plan, rate=rate)
    for run, wanted in zip(results, expected, strict=True):
        assert run.training.loss == pytest.approx(wanted.training.loss, rel=max(close, 1e-6))  # kept in float32
        assert run.training.top1 == pytest.approx(wanted.training.top1, abs=1.01 / IMAGES)
        assert run.images == wanted.images
    for slot in range(3):
        for part in ("weights", "buffers", "momenta"):
            ours, theirs = others.candidate(slot)[part], population.candidate(slot)[part]
            for name, value in theirs.items():
                torch.testing.assert_close(ours[name], value, rtol=close, atol=close, msg=lambda m, n=name: f"{n}: {m}")
        averages = (each.epoch_average.mean_weights(slot) for each in (others, population))
        for ours, theirs in zip(*(average.values() for average in averages), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
    losses = [run.training.loss for run in results]
    assert len(set(losses)) == 3, "the candidates must differ, or the test shows nothing"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["streams", "stacked"])
def test_candidates_side_by_side_share_the_time_that_passed(
    way: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that moves on by a second whenever it is read."""
    readings = count()
    monkeypatch.setattr("tfkd_fast.training.epoch.time", SimpleNamespace(perf_counter=lambda: float(next(readings))))
    trainer, _, _, plan = make(way, device)
    runs = train(trainer, plan, epochs=1)
    last = next(readings) - 1
    assert len(runs) == 3
    assert sum(run.seconds + run.set_up_seconds for run in runs) == pytest.approx(last)


def soft_cross_entropy(teacher: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(teacher || softmax(logits)) up to what no gradient reaches, mean over the batch."""
    return -(teacher * logits.log_softmax(-1)).sum(-1).mean()


@pytest.mark.parametrize("way", ["sequential", "streams", "stacked"])
def test_candidates_that_teach_each_other_are_the_loop_that_one_writes_by_hand(way: str) -> None:
    """All sources at once, in float64: each candidate has a network, a slow copy of it and a memory.

    Only what the method computed in float32 before the epoch is taken over: tables, shares, temperatures."""
    trainer, population, method, plan = make(way, sources=SOURCES, dtype=torch.float64)
    models, slow_models = ([copy.deepcopy(population.models[0]).train() for _ in range(3)] for _ in range(2))
    optimizers = [torch.optim.SGD(m.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4) for m in models]
    remembered = torch.zeros(3, IMAGES, 10, dtype=torch.float64)
    teaching: Any = method.teaching
    tables, shares, temperatures = (t.double() for t in (teaching.tables, teaching.shares, teaching.temperatures))
    for epoch in range(2):
        rates = torch.tensor([[factor * rate for rate in schedule(epoch, 0.05)] for factor in plan.factors]).tolist()
        for step, batch in enumerate(trainer.loader.epoch(epoch)):
            logits = [model(batch.images) for model in models]
            with torch.no_grad():
                slow_logits = [model(batch.images) for model in slow_models]
            for slot in range(3):
                own, share = logits[slot], shares[slot]
                memory, shared, slow = temperatures[slot]
                peers = torch.stack([(each.detach() / shared).softmax(-1) for each in logits]).mean(0)
                loss = (
                    share[0] * soft_cross_entropy(tables[slot][batch.labels], own)
                    + share[1] * memory**2
                    * soft_cross_entropy((remembered[slot, batch.indices] / memory).softmax(-1), own / memory)
                    + share[2] * shared**2 * soft_cross_entropy(peers, own / shared)
                    + share[3] * slow**2 * soft_cross_entropy((slow_logits[slot] / slow).softmax(-1), own / slow)
                )  # fmt: skip
                optimizers[slot].param_groups[0]["lr"] = rates[slot][step]
                optimizers[slot].zero_grad()
                loss.backward()
                optimizers[slot].step()
                remembered[slot, batch.indices] = own.detach().half().double()
                with torch.no_grad():
                    for follower, weight in zip(slow_models[slot].parameters(), models[slot].parameters(), strict=True):
                        follower.copy_(0.9 * follower + 0.1 * weight)
    slow_forwards: list[tuple[bool, bool]] = []
    for model in population.slow_models:
        model.register_forward_hook(lambda of, _, out: slow_forwards.append((of.training, out.requires_grad)))
    train(trainer, plan)
    assert slow_forwards == ([] if way == "stacked" else [(True, False)] * (2 * 6 * 3))  # stacked: as one network
    close = {"rtol": 1e-9, "atol": 1e-9}  # sums in another order differ by 1e-16 a step, which 12 steps carry on
    for slot in range(3):
        for ours, theirs in ((population.models, models), (population.slow_models, slow_models)):
            for name, value in theirs[slot].state_dict().items():  # weights, and what batch norm saw
                torch.testing.assert_close(ours[slot].state_dict()[name], value, **close)
    torch.testing.assert_close(teaching.instances.logits.double(), remembered, **close)
    for a, b in ((0, 1), (1, 2)):
        difference = (models[a].classifier.weight - models[b].classifier.weight).abs().max()
        assert difference > 1e-4, "the candidates must differ, or the test shows nothing"


@pytest.mark.parametrize("way", ["sequential", "stacked"])
@pytest.mark.parametrize("sources", [(), ("peers",)])
def test_a_candidate_whose_learning_rate_is_zero_stays_where_it_is(way: str, sources: tuple[str, ...]) -> None:
    trainer, population, _, plan = make(way, sources=sources)
    start = population.candidate(0)["weights"]
    trainer.run(replace(plan, learning_rate_factors=(1.0, 0.0, 1.2)), 0, schedule(0, 0.05), average=False)
    for slot in range(3):
        moved = [not torch.equal(value, start[name]) for name, value in population.candidate(slot)["weights"].items()]
        assert all(moved) if slot != 1 else not any(moved)


def test_in_bf16_the_stack_computes_in_bf16() -> None:
    losses = {}
    for way in ("sequential", "stacked"):
        trainer, _, _, plan = make(way, dtype=torch.bfloat16)
        losses[way] = [run.training.loss for run in train(trainer, plan, epochs=1)]
    trainer, _, _, plan = make("sequential")
    exact = [run.training.loss for run in train(trainer, plan, epochs=1)]
    for stacked, sequential, fp32 in zip(losses["stacked"], losses["sequential"], exact, strict=True):
        assert stacked != fp32
        assert stacked == pytest.approx(sequential, rel=2e-2)  # bf16 has 8 bits, and the losses of 6 steps are averaged


@pytest.mark.parametrize("way", ["sequential", "stacked"])
@pytest.mark.parametrize("sources", [(), SOURCES])
def test_the_steps_of_an_epoch_never_wait_for_the_device(
    way: str, sources: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU as a stand-in: what is left out looks at values there alone, where that costs no wait."""
    waits = watch_steps(monkeypatch)
    trainer, _, _, plan = make(way, sources=sources)
    with ops.using_backend("reference"):
        train(trainer, plan, epochs=1)
    lanes = 3 if way == "sequential" and not sources else 1  # peers step together
    assert len(waits) == 2 * lanes  # a smaller last batch is a kind of its own
    assert not any(waits.values())


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["sequential", "streams", "stacked"])
@pytest.mark.parametrize("loader", ["resident", "torchvision"])
def test_an_epoch_on_cuda_waits_once_at_its_end(way: str, loader: str) -> None:
    trainer, _, _, plan = make(way, "cuda", loader=loader)
    train(trainer, plan, epochs=6)  # the set-up may wait
    for lane in trainer.lanes(plan, average=False):
        lane.records.restart([[0.01] * len(lane.turns)] * len(lane.slots))
        lane.feed.start(1, [DataStream(slot, slot) for slot in lane.slots])
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for turn in lane.turns:
                lane.feed.advance()
                assert lane.steps[turn].replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["sequential", "streams", "stacked"])
@pytest.mark.parametrize("sources", [(), SOURCES])
def test_a_captured_step_is_the_step(way: str, sources: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    captured, population, _, plan = make(way, "cuda", sources=sources)
    runs = train(captured, plan, epochs=4)
    monkeypatch.setattr("tfkd_fast.training.capture.WARMUP_STEPS", 10**6)
    uncaptured, others, _, plan = make(way, "cuda", sources=sources)
    expected = train(uncaptured, plan, epochs=4)
    for slot in range(3):
        terms = runs[slot].training.terms
        assert terms.keys() == ({"target", *sources} if sources else set())
        assert terms == pytest.approx(expected[slot].training.terms, rel=2e-3, abs=2e-4)
        for name, value in others.candidate(slot)["weights"].items():
            torch.testing.assert_close(population.candidate(slot)["weights"][name], value, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_it_learns_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several at once; one after the other in tests/methods/test_every_step.py. On the CPU torch's code is run as it
    was traced: that of Inductor is in `test_trainer`."""
    if device == "cpu":
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, _, _, plan = make("stacked", device)
    expected = train(plain, plan, epochs=1)
    compiled, _, _, plan = make("stacked", device, compile=True)
    results = train(compiled, plan, epochs=1)
    for run, wanted in zip(results, expected, strict=True):
        assert run.training.loss == pytest.approx(wanted.training.loss, rel=1e-3)
        assert run.images < IMAGES  # what was trained on while compiling is timed apart
    assert results[0].set_up_seconds > results[0].seconds


def test_on_threads_nobody_trains_while_another_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch 2.11, what is compiled may not be called meanwhile: one thread compiles and trains until all is done."""
    compiled_by: list[int] = []
    trained_by: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        compiled_by.append(threading.get_ident())
        before.append(len(trained_by))
        return graph.forward

    before: list[int] = []  # steps that were taken when something was compiled
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    trainer, _, _, plan = make(
        "streams", compile=True, on_batch=lambda images: trained_by.append(threading.get_ident())
    )
    with using_threads(3):
        train(trainer, plan, epochs=2)
    assert len(trained_by) == 2 * 3 * 6
    assert before[-1] < 3 * 6, "in the first epoch"
    assert set(compiled_by) | set(trained_by[: 3 * 6]) == {compiled_by[0]}


@pytest.mark.parametrize("way", ["sequential", "streams", "stacked"])
def test_only_the_candidate_that_diverges_is_faulty_and_an_epochs_last_update_counts(way: str) -> None:
    """The second has an infinite bias from the start. The learning rate of the third is 0 but for the last step, where
    it is beyond float32: all of its losses are finite, its weights are not."""
    trainer, population, _, plan = make(way)
    with torch.no_grad():
        population.models[1].classifier.bias[0] = torch.inf
    plan = replace(plan, learning_rate_factors=(1.0, 1.0, 1e30))
    sound, from_the_start, at_the_end = trainer.run(plan, 1, [*[0.0] * 5, 1e9], average=False)
    assert sound.fault is None
    assert from_the_start.fault is not None
    assert re.fullmatch(r"the loss became (nan|inf) in epoch 2, step 1", from_the_start.fault.what)
    assert at_the_end.fault is not None
    assert re.fullmatch(r"not finite after epoch 2: weights\.\S+ and \d+ more", at_the_end.fault.what)
    assert math.isfinite(at_the_end.training.loss)
    assert {run.fault.remedy for run in (from_the_start, at_the_end)} == {"lower optimizer.learning_rate"}


def test_on_threads_the_first_error_stops_every_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def fail_once(images: int) -> None:
        taken.append(images)
        if len(taken) == 2:
            raise KeyboardInterrupt

    trainer, _, _, plan = make("streams", on_batch=fail_once)
    with using_threads(2):
        with pytest.raises(KeyboardInterrupt):
            train(trainer, plan, epochs=1)
        assert torch.get_num_threads() == 2
    assert len(taken) < 3 * 6  # the steps of all candidates
