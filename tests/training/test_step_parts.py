"""What a method can ask of a step: features, companions, adapters, mixing, a look ahead; against loops by hand."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.calls import Calls
from tfkd_fast.data import (
    Batch,
    DataSettings,
    DataStream,
    Loader,
    Mixing,
    make_loader,
    missing_loaders,
    open_dataset,
)
from tfkd_fast.device import Compute
from tfkd_fast.methods import Context
from tfkd_fast.methods.base import Loss, Needs, SingleStudent, StepBatch, TrainingStatistics, TrainingStep
from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.ops.losses import are_known_ones
from tfkd_fast.runs.optimizer import SGDSettings
from tfkd_fast.training.epoch import EpochTrainer
from tfkd_fast.training.feed import make_feed
from tfkd_fast.training.population import Population

COMPUTE = Compute(torch.device("cpu"), torch.float32)
COUNT, BATCH, RATE = 40, 16, 0.05
SETTINGS = SGDSettings(nesterov=True)


class Probe(SingleStudent):
    """Cross-entropy; what a test wants to see of a step is kept."""

    @classmethod
    def needs_for(cls, settings: Needs) -> Needs:
        return settings

    def __init__(self, **needs: Any) -> None:
        super().__init__(Needs(**needs), Context(10, COUNT, 4, 0, COMPUTE.device, lambda epoch: 1.0))
        self.steps: list[tuple[Tensor, StepBatch]] = []

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        self.steps.append((logits, batch))
        loss, statistics = self.cross_entropy(logits, batch.labels)
        return Loss({"hard": loss}, statistics)


def a_student() -> nn.Module:
    return COMPUTE.place(build_model(ModelSettings(width=0.125), 10, 1, seed=0))


def a_loader(loader: str = "resident", count: int = COUNT) -> Loader:
    if reason := missing_loaders()[loader]:
        pytest.skip(f"the loader {loader} {reason}")
    here = {} if loader == "resident" else {"workers": 0}
    settings = DataSettings(batch_size=BATCH, loader=loader, **here)
    digits = open_dataset(settings)
    images = digits.read_train().subset(torch.arange(count))
    return make_loader(images, digits, settings, COMPUTE.device, COMPUTE.dtype, seed=3)


def train(method: SingleStudent, *, epochs: int = 1, loader: Loader | None = None, **parts: Any) -> Population:
    loader = loader or a_loader()
    population = Population(a_student, 1)
    trainer = EpochTrainer(population, method, loader, COMPUTE, SETTINGS, "sequential", lambda images: None, **parts)
    for epoch in range(epochs):
        trainer.run(method.begin_interval(epoch), epoch, [RATE] * len(loader), average=False)
    return population


def reference_step(student: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def an_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)


def assert_same_weights(population: Population, student: nn.Module) -> None:
    for name, value in student.state_dict().items():
        found = dict(population.models[0].state_dict())[name]
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)  # sums in another order, through three steps


def test_features_are_those_of_the_batch() -> None:
    method = Probe(features=frozenset({"stages"}))
    train(method)
    logits, batch = method.steps[0]
    shown = next(a_loader().epoch(0))
    expected, features = a_student()(shown.images, return_features=True)
    torch.testing.assert_close(logits[0], expected, rtol=1e-5, atol=1e-6)
    for found, map in zip(batch.features.before_relu, features.before_relu, strict=True):
        torch.testing.assert_close(found[0], map, rtol=1e-4, atol=1e-5)
    assert batch.students[0].classifier.weight.shape == (10, batch.features.pooled.shape[-1])


@pytest.mark.parametrize("loader", ["resident", "torchvision", "dali"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("kind", ["same-class", "previous"])
def test_companions_are_shown_beside_the_batch(loader: str, gradient: bool, kind: Any) -> None:
    method, made = Probe(companions=kind, companion_gradient=gradient), a_loader(loader)
    population = train(method, loader=made)
    batches, beside = made.epoch(0), made.visit(made.companion_order(kind, 0), 0, 2**31)
    student = a_student().train()
    optimizer = an_optimizer(student.parameters())
    for (logits, step), batch, companions in zip(method.steps, batches, beside, strict=True):
        if gradient:
            both = student(torch.cat([batch.images, companions.images]))
            expected, of_companions = both.split(len(batch.labels))
        else:
            with torch.no_grad():
                of_companions = student(companions.images)
            expected = student(batch.images)
        torch.testing.assert_close(logits[0], expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(step.companions.logits[0], of_companions, rtol=1e-3, atol=1e-4)
        assert step.companions.indices[0].tolist() == companions.indices.tolist()
        assert step.companions.logits.requires_grad == gradient
        reference_step(student, optimizer, F.cross_entropy(expected, batch.labels))
    assert_same_weights(population, student)


def test_companions_are_augmented_differently() -> None:
    digits = a_loader()
    order = digits.order(0)
    shown = torch.cat([batch.images for batch in digits.visit(order, 0)])
    beside = torch.cat([batch.images for batch in digits.visit(order, 0, 2**31)])
    assert sum(not torch.equal(a, b) for a, b in zip(shown, beside, strict=True)) > 30  # one crop in 81 is the same


class WithHead(Probe):
    """A second classifier, on the map of a middle stage; a layer that the loss never uses stands beside it."""

    def __init__(self, **needs: Any) -> None:
        super().__init__(features=frozenset({"stages"}), **needs)
        torch.manual_seed(1)
        self.adapters = nn.ModuleDict({"head": nn.Linear(16, 10), "unused": nn.Linear(2, 2)})

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        loss = super().loss(logits, batch)
        weak = self.adapters["head"](batch.features.after_relu[1].mean(dim=(-1, -2)))
        terms = {**loss.terms, "weak": 0.5 * F.cross_entropy(weak[0], batch.labels[0]).unsqueeze(0)}
        return Loss(terms, loss.statistics)


def test_adapters_train_with_the_student() -> None:
    method = WithHead()
    head, unused = copy.deepcopy(method.adapters["head"]), copy.deepcopy(method.adapters["unused"])
    population = train(method)
    student = a_student().train()
    optimizer = an_optimizer([*student.parameters(), *head.parameters()])
    for batch in a_loader().epoch(0):
        logits, features = student(batch.images, return_features=True)
        weak = head(features.after_relu[1].mean(dim=(-1, -2)))
        loss = F.cross_entropy(logits, batch.labels) + 0.5 * F.cross_entropy(weak, batch.labels)
        reference_step(student, optimizer, loss)
    assert_same_weights(population, student)
    torch.testing.assert_close(method.adapters["head"].weight, head.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(method.adapters["unused"].weight, unused.weight, rtol=0, atol=0)  # not even decayed


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("loader", ["resident", "torchvision"])
def test_a_mixed_image_counts_both_labels(name: Any, loader: str) -> None:
    method, made, mixing = Probe(), a_loader(loader), Mixing(name, 1.0, seed=3)
    population = train(method, loader=made, mixing=mixing)
    student = a_student().train()
    optimizer = an_optimizer(student.parameters())
    plans = mixing.plan(len(made), 0, 0)
    for plan, batch in zip(plans, made.epoch(0), strict=True):
        batch = Batch(*(tensor.unsqueeze(0) for tensor in batch))
        shown, mixed = mixing.mix(batch, plan.unsqueeze(0))
        logits, share = student(shown.images[0]), float(mixed.share)
        loss = share * F.cross_entropy(logits, batch.labels[0]) + (1 - share) * F.cross_entropy(logits, mixed.labels[0])
        reference_step(student, optimizer, loss)
    assert_same_weights(population, student)


def run_epoch(method: SingleStudent, **parts: Any) -> TrainingStatistics:
    loader = a_loader()
    population = Population(a_student, 1)
    trainer = EpochTrainer(population, method, loader, COMPUTE, SETTINGS, "sequential", lambda images: None, **parts)
    (run,) = trainer.run(method.begin_interval(0), 0, [RATE] * len(loader), average=False)
    return run.training


def test_the_terms_of_a_loss_are_means_over_the_images() -> None:
    method = WithHead()
    head = copy.deepcopy(method.adapters["head"])
    statistics = run_epoch(method)
    student = a_student().train()
    optimizer = an_optimizer([*student.parameters(), *head.parameters()])
    sums = {"hard": 0.0, "weak": 0.0}
    for batch in a_loader().epoch(0):
        logits, features = student(batch.images, return_features=True)
        hard = F.cross_entropy(logits, batch.labels)
        weak = 0.5 * F.cross_entropy(head(features.after_relu[1].mean(dim=(-1, -2))), batch.labels)
        reference_step(student, optimizer, hard + weak)
        for name, term in (("hard", hard), ("weak", weak)):
            sums[name] += term.item() * len(batch.labels)
    assert statistics.terms == {name: pytest.approx(total / COUNT, rel=1e-4) for name, total in sums.items()}
    assert statistics.loss == pytest.approx(sum(statistics.terms.values()), rel=1e-6)


def test_the_terms_of_mixed_images_add_up_to_their_loss() -> None:
    statistics = run_epoch(WithHead(), mixing=Mixing("mixup", 1.0, seed=3))
    assert statistics.terms.keys() == {"hard", "weak"}
    assert statistics.loss == pytest.approx(sum(statistics.terms.values()), rel=1e-6)
    assert statistics.loss != pytest.approx(run_epoch(WithHead()).loss, rel=1e-4), "or nothing was mixed"


def test_a_loss_of_one_term_is_not_told_twice() -> None:
    assert run_epoch(Probe()).terms == {}


class LossAlone(Probe):
    """Gives no statistics."""

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        return Loss(super().loss(logits, batch).terms)


def test_statistics_that_a_method_does_not_give_are_worked_out() -> None:
    assert run_epoch(LossAlone()) == run_epoch(Probe())


class Whimsical(Probe):
    """Other terms in each step."""

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        (hard,) = super().loss(logits, batch).terms.values()
        return Loss({f"part {len(self.steps)}": hard / 2, "rest": hard / 2})


class Talkative(Probe):
    """More terms than can be told apart."""

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        (hard,) = super().loss(logits, batch).terms.values()
        return Loss({f"part {number}": hard / 20 for number in range(20)})


@pytest.mark.parametrize("kind", [Whimsical, Talkative])
def test_terms_that_cannot_be_told_apart_are_refused(kind: type[Probe]) -> None:
    with pytest.raises(ValueError, match="must have the same names in all steps of a phase, 16 at most: got part"):
        run_epoch(kind())


class LooksAhead(WithHead):
    """Tries a step of its own before every step, and notes what it saw."""

    def __init__(self, *, tries: bool) -> None:
        super().__init__(look_ahead=True)
        self._tries = tries
        self.losses: list[tuple[float, float, float]] = []
        self.held_out: list[Batch] = []

    def before_step(self, step: TrainingStep) -> None:
        assert (step.learning_rate, step.momentum, step.nesterov) == (pytest.approx(RATE), 0.9, True)
        self.held_out.append(step.holdout())
        if not self._tries:
            return
        with step.rollback():
            first = step.loss()
            gradients = torch.autograd.grad(first, step.weights, allow_unused=True)
            with torch.no_grad():
                for weight, gradient, momentum in zip(step.weights, gradients, step.momenta, strict=True):
                    if gradient is not None:
                        weight -= 0.01 * gradient
                        momentum += gradient
            second = step.loss()
        self.losses.append((first.item(), second.item(), step.loss().item()))


def test_a_look_ahead_leaves_no_trace() -> None:
    """Weights, momenta and buffers, of student and adapters, bit for bit."""
    quiet, trying = LooksAhead(tries=False), LooksAhead(tries=True)
    populations = [train(method, epochs=2, holdout=a_loader(count=24)) for method in (quiet, trying)]
    for tree, other in (
        (populations[0].candidate(0)["weights"], populations[1].candidate(0)["weights"]),
        (populations[0].candidate(0)["momenta"], populations[1].candidate(0)["momenta"]),
    ):
        for name, tensor in tree.items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=0)
    for a, b in zip(quiet.adapters.state_dict().values(), trying.adapters.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for before, after, again in trying.losses:
        assert after < before  # a small step downhill
        assert again == pytest.approx(before, rel=1e-6)


def test_held_out_batches_come_without_end_and_are_told_by_the_epoch() -> None:
    method = LooksAhead(tries=False)
    train(method, epochs=2, holdout=a_loader(count=24))
    sizes = [len(batch.labels) for batch in method.held_out]
    assert sizes == [16, 8, 16] * 2
    seen = torch.cat([batch.indices for batch in method.held_out[:2]])
    assert sorted(seen.tolist()) == list(range(24))
    again = LooksAhead(tries=False)
    train(again, epochs=2, holdout=a_loader(count=24))
    for a, b in zip(method.held_out, again.held_out, strict=True):
        torch.testing.assert_close(a.images, b.images, rtol=0, atol=0)


def test_the_backward_pass_begins_with_ones_that_a_loss_knows() -> None:
    """It then neither reads nor writes the gradient that came with the loss."""
    met = []

    class Watch(Probe):
        def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
            loss = super().loss(logits, batch)
            loss.terms["hard"].register_hook(lambda upstream: met.append(are_known_ones(upstream)))
            return loss

    train(Watch())
    assert met == [True] * 3


def test_no_step_copies_a_tensor() -> None:
    """On CUDA each copy is a kernel of every step; gradients come in the layout of their weights."""
    copies = []
    for count in (BATCH, 3 * BATCH):
        with Calls() as calls:
            train(Probe(), loader=a_loader(count=count))
        copies.append(calls.seen.count("copy_") + calls.seen.count("clone"))
    assert copies[0] == copies[1]  # those of the beginning of an epoch


@pytest.mark.parametrize(("count", "sizes"), [(40, [16, 16, 8]), (32, [16, 16]), (5, [5])])
def test_a_resident_batch_is_found_by_one_lookup(count: int, sizes: list[int]) -> None:
    """Of the order of the epoch; on CUDA each of these calls is a kernel of every step."""
    loader = a_loader(count=count)
    feed = make_feed(loader, None, None, 1, COMPUTE.device)
    feed.start(2, [DataStream(0, 0)])
    order = loader.order(2, 0)
    for number, size in enumerate(sizes):
        with Calls() as calls:
            batch = feed.read(torch.tensor([number]), size).batch
        assert torch.equal(batch.indices[0], order[number * 16 : number * 16 + size])
        assert calls.seen.count("index_select") - loader_lookups(loader, batch.indices) == (size == 16)
        assert not {"arange", "mul"} & set(calls.seen)


@pytest.mark.parametrize("loader", ["resident", "torchvision"])
def test_candidates_can_see_other_views_of_the_same_images(loader: str) -> None:
    made = a_loader(loader)
    feed = make_feed(made, None, None, 2, COMPUTE.device)
    feed.start(1, [DataStream(0, 0), DataStream(0, 5)])
    expected = zip(made.epoch(1), made.visit(made.order(1), 1, 5), strict=True)
    for step, batches in enumerate(expected):
        feed.advance()
        shown = feed.read(torch.tensor([step]), len(batches[0].labels)).batch
        for row, batch in enumerate(batches):
            assert torch.equal(shown.images[row], batch.images)
            assert torch.equal(shown.indices[row], batches[0].indices)
    feed.finish()


def loader_lookups(loader: Loader, indices: Tensor) -> int:
    """How often a loader looks up what belongs to the images, such as labels."""
    with Calls() as calls:
        loader.resident_batch(indices, loader.draws(2, [0]))
    return calls.seen.count("index_select")
