"""The search: its gradient against finite differences, what it leaves behind, and what it records."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.distpro.steps import (
    BATCH,
    CLASSES,
    Step,
    context,
    draw_batch,
    network,
    outputs,
)
from tfkd_fast.data import Batch
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import StepBatch, TeacherOutputs
from tfkd_fast.methods.distpro import DistProSearch, DistProSearchSettings
from tfkd_fast.methods.distpro.connectors import hierarchical_context_loss
from tfkd_fast.methods.distpro.pathways import biased_softmax
from tfkd_fast.methods.distpro.search import LearnedAlpha, SearchSettings, influences
from tfkd_fast.models import Features, FeatureShapes
from tfkd_fast.runs.recipe import make_recipe


def build(**tables: dict[str, object]) -> DistProSearch:
    return DistProSearch(DistProSearchSettings.model_validate(tables), context())


def as_double(batch: Batch) -> Batch:
    return batch._replace(images=batch.images.double())


def first_step(method: DistProSearch, *, double: bool = False, nesterov: bool = False) -> Step:
    student, teacher = network(), network("vgg13", seed=5)
    batch, held_out = draw_batch(1), draw_batch(2)
    if double:
        student, teacher = student.double(), teacher.double()
        method.adapters.double()
        batch, held_out = as_double(batch), as_double(held_out)
    return Step(method, student, outputs(teacher, batch.images), batch, held_out, nesterov=nesterov)


# The gradient.


class Toy:
    """A `TrainingStep` of a linear student, which learns from a label and along two pathways with torch's optimiser."""

    learning_rate, momentum, weight_decay = 0.3, 0.9, 0.01

    def __init__(self, *, nesterov: bool) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.nesterov = nesterov
        self.student = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3)).double()
        for parameter in self.student.parameters():
            parameter.data = 0.5 * draw(*parameter.shape)
        self.student.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
        self.weights = list(self.student.parameters())
        self.momenta = [0.1 * draw(*weight.shape) for weight in self.weights]
        labels = torch.tensor([0, 1, 2, 0, 1, 2])
        self.batch = Batch(draw(6, 4), labels, labels)
        self._held_out = Batch(draw(6, 4), labels.flip(0), labels)
        self._inner, self._outer = draw(6, 5), draw(6, 3)
        self.alpha = torch.tensor([1.2, 0.7], dtype=torch.float64, requires_grad=True)

    def pathway_losses(self) -> Tensor:
        hidden = self.student[0](self.batch.images)
        return torch.stack([F.mse_loss(hidden, self._inner), F.mse_loss(self.student[1](hidden), self._outer)])

    def loss(self) -> Tensor:
        hard = F.cross_entropy(self.student(self.batch.images), self.batch.labels)
        return hard + (biased_softmax(self.alpha.detach()) * self.pathway_losses()).sum()

    def holdout(self) -> Batch:
        return self._held_out

    @contextmanager
    def rollback(self) -> Iterator[None]:
        before = copy.deepcopy(self.student.state_dict())
        yield
        self.student.load_state_dict(before)

    def held_out_loss_after(self, alpha: Tensor) -> float:
        with self.rollback():
            self.alpha = alpha
            sgd = torch.optim.SGD(
                self.weights,
                self.learning_rate,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.nesterov,
            )
            for weight, momentum in zip(self.weights, self.momenta, strict=True):
                sgd.state[weight]["momentum_buffer"] = momentum.clone()
            self.loss().backward()
            sgd.step()
            sgd.zero_grad()
            return F.cross_entropy(self.student(self._held_out.images), self._held_out.labels).item()


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_hypergradient_is_that_of_finite_differences(nesterov: bool) -> None:
    """The step is linear in the weights of the pathways, so that only the central difference along a step of 0.01 errs:
    by about its square, of gradients that cancel up to a tenth or a hundredth."""
    toy = Toy(nesterov=nesterov)
    alpha = toy.alpha
    biased_softmax(alpha).backward(influences(toy, toy.pathway_losses))
    difference = 1e-4
    for number in range(2):
        offset = difference * F.one_hot(torch.tensor(number), 2)
        above, below = (toy.held_out_loss_after((alpha + sign * offset).detach()) for sign in (1, -1))
        assert alpha.grad[number].item() == pytest.approx((above - below) / (2 * difference), rel=1e-2)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_hypergradient_through_networks_and_connectors_is_that_of_finite_differences(nesterov: bool) -> None:
    method = build(pathways={"transforms": ["identity-1x1"]})
    step = first_step(method, double=True, nesterov=nesterov)

    def pathway_losses() -> Tensor:
        step.loss()
        return method.measured[0]

    def held_out_loss_after(alpha: Tensor) -> Tensor:
        with step.rollback(), torch.enable_grad():
            method.set_weights(biased_softmax(alpha))
            step.take()
            return F.cross_entropy(step.student(step.holdout().images), step.holdout().labels).detach()

    alpha = torch.ones(len(method.pathways), requires_grad=True)
    biased_softmax(alpha).backward(influences(step, pathway_losses).float())
    chosen, difference = (0, 4, 9, 14), 0.05
    expected = []
    for number in chosen:
        offset = difference * F.one_hot(torch.tensor(number), len(alpha))
        above, below = (held_out_loss_after((alpha + sign * offset).detach()) for sign in (1, -1))
        expected.append((above - below) / (2 * difference))
    error = alpha.grad[list(chosen)].double() - torch.stack(expected)
    assert error.norm() < 0.05 * torch.stack(expected).norm()


class SmallNetwork(nn.Module):
    """One stage, of 4x4 maps."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.classifier = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        before = self.norm(self.conv(images))
        pooled = before.relu().mean((2, 3))
        logits = self.classifier(pooled)
        return (logits, Features([before], [before.relu()], pooled)) if return_features else logits


@pytest.mark.parametrize("seed", [0, 1])
def test_a_pathway_from_random_features_gets_the_lowest_weight(seed: int) -> None:
    """Beside one from a teacher that began where the student begins. Both connectors begin as the identity: one step
    ahead, features that a random connector has turned around do not help a student at first."""
    stage = (16, 4, 4)
    taught, shapes = FeatureShapes((stage, stage), 16), FeatureShapes((stage,), 16)
    settings = DistProSearchSettings.model_validate(
        {
            "pathways": {"transforms": ["identity-1x1"], "all_pairs": True},
            "search": {"learning_rate": 0.1},
        }
    )
    method = DistProSearch(settings, replace(context(taught=taught), shapes=shapes))
    for connector in method.adapters.connectors:
        nn.init.dirac_(connector.conv.weight)
    student, teacher = SmallNetwork(seed), SmallNetwork(seed)
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(CLASSES, 3, 4, 4, generator=generator)

    def draw() -> Batch:
        labels = torch.randint(CLASSES, (64,), generator=generator)
        return Batch(classes[labels] + 0.5 * torch.randn(64, 3, 4, 4, generator=generator), labels, labels)

    sgd = torch.optim.SGD(teacher.parameters(), 0.05, momentum=0.9)
    for _ in range(150):
        batch = draw()
        sgd.zero_grad()
        F.cross_entropy(teacher(batch.images), batch.labels).backward()
        sgd.step()
    step = None
    for _ in range(30):
        batch = draw()
        (useful,) = outputs(teacher, batch.images)
        maps = [useful.features.before_relu[0], torch.randn(1, 64, *stage, generator=generator)]
        given = TeacherOutputs(useful.logits, Features(maps, maps, useful.features.pooled))
        following = Step(method, student, (given,), batch, draw())
        following.momenta = step.momenta if step else [torch.zeros_like(weight) for weight in following.weights]
        step = following
        method.before_step(step)
        step.take()
    useful_weight, random_weight = method.alpha.shares().tolist()
    assert random_weight < 0.5 * useful_weight


# A step.


def test_looking_ahead_leaves_no_trace_but_alpha() -> None:
    method = build()
    step = first_step(method)
    tensors = [tensor.detach().clone() for tensor in step.tensors()]
    places = [tensor.data_ptr() for tensor in step.tensors()]
    method.before_step(step)
    assert not torch.equal(method.alpha.value, torch.ones(30))
    assert [tensor.data_ptr() for tensor in step.tensors()] == places
    assert all(torch.equal(now, then) for now, then in zip(step.tensors(), tensors, strict=True))


def stage_maps(features: Features) -> list[Tensor]:
    """Before ReLU, those of a stem first."""
    return [*(() if features.stem is None else (features.stem,)), *features.before_relu]


@pytest.mark.parametrize(("networks", "pairs"), [(("vgg8", "vgg13"), 15), (("resnet8", "wrn_16_1"), 10)])
@pytest.mark.parametrize("candidates", [1, 2])
def test_the_loss_is_that_of_label_and_pathways(candidates: int, networks: tuple[str, str], pairs: int) -> None:
    """In float64, gradients in logits and features included; some pathways are skipped. Candidates share the connectors
    and their batch norms. Residual networks learn and teach by their stems, too."""
    method = DistProSearch(DistProSearchSettings(), context(*networks))
    method.adapters.double()
    count = 2 * pairs
    weights = torch.rand(count, generator=torch.Generator().manual_seed(0)) / count
    weights[::3] = 0.0
    method.set_weights(weights)
    student, teacher = network(networks[0]).double(), network(networks[1], seed=5).double()
    batches = [as_double(draw_batch(seed)) for seed in range(candidates)]
    seen = [student(batch.images, return_features=True) for batch in batches]
    (taught,) = outputs(teacher, torch.cat([batch.images for batch in batches]))
    logits = torch.stack([logits for logits, _ in seen]).detach().requires_grad_()
    maps = [
        torch.stack(of_stage).detach().requires_grad_()
        for of_stage in zip(*(stage_maps(f) for _, f in seen), strict=True)
    ]
    labels = torch.stack([batch.labels for batch in batches])
    given = [map.unflatten(1, (candidates, BATCH))[0] for map in stage_maps(taught.features)]

    def as_features(maps: list[Tensor]) -> Features:
        return Features(maps[-3:], [], logits, maps[0]) if pairs == 10 else Features(maps, [], logits)

    shown = StepBatch(
        labels,
        labels,
        features=as_features(maps),
        teachers=(TeacherOutputs(logits.detach(), as_features(given)),),
    )
    loss = method.loss(logits, shown)
    losses, statistics = loss.total, loss.statistics
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").unflatten(0, labels.shape)
    expected = expected.mean(1)
    assert len(method.pathways) == count
    for weight, pathway, connector in zip(weights, method.pathways, method.adapters.connectors, strict=True):
        target = given[pathway.teacher_stage].flatten(0, 1)
        result = connector(maps[pathway.student_stage].flatten(0, 1), tuple(target.shape[-2:]))
        distance = hierarchical_context_loss(result, target).unflatten(0, labels.shape).mean(1)
        expected = expected + weight.double() * distance
    torch.testing.assert_close(losses, expected, rtol=1e-7, atol=1e-7)  # the one-hot table is float32
    inputs = [logits, *maps]
    found = torch.autograd.grad(losses.sum(), inputs, retain_graph=True)
    for gradient, wanted in zip(found, torch.autograd.grad(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)
    assert statistics.correct.tolist() == (logits.argmax(-1) == labels).sum(-1).tolist()


def test_a_skipped_pathway_is_not_computed_but_judged() -> None:
    method = build(pathways={"transforms": ["identity-1x1"]})
    state = method.state_dict()
    state["alpha"][4] = -1.0
    method.load_state_dict(state)
    step = first_step(method)
    gradients = torch.autograd.grad(step.loss(), list(method.adapters.parameters()), allow_unused=True)
    connectors = [gradients[i : i + 3] for i in range(0, len(gradients), 3)]
    assert [number for number, own in enumerate(connectors) if own[0] is None] == [4]
    assert method.measured[0, 4] == 0
    method.before_step(step)
    assert method.alpha.value[4] != -1.0
    assert (method.measured[0] > 0).all()


# What is learned and recorded.


@pytest.mark.parametrize("normalization", ["softmax", "biased-softmax"])
def test_alpha_follows_adam_in_bounded_steps(normalization: str) -> None:
    """After many small gradients Adam answers a large one with (1 - 0.5) / sqrt(1 - 0.999) = 16 learning rates. A
    softmax does not change with what is added to all alpha: they are compared by their differences."""
    alpha = LearnedAlpha(SearchSettings(learning_rate=0.1, normalization=normalization), 2)
    label = math.e if normalization == "biased-softmax" else 0.0
    independent = torch.ones(2, requires_grad=True)
    adam = torch.optim.Adam([independent], 0.1, (0.5, 0.999))

    def differences(values: Tensor) -> Tensor:
        return values if label else values - values[0]

    for scale in (1.0, -0.5, 2.0):
        influence = scale * torch.tensor([0.3, -0.2])
        adam.zero_grad()
        exponentials = torch.exp(independent)
        (exponentials / (label + exponentials.sum()) * influence).sum().backward()
        adam.step()
        alpha.learn(influence)
    torch.testing.assert_close(differences(alpha.value), differences(independent.detach()), rtol=1e-5, atol=1e-6)
    exponentials = torch.exp(alpha.value.double())
    torch.testing.assert_close(alpha.shares().double(), exponentials / (label + exponentials.sum()), rtol=1e-5, atol=0)
    if not label:  # what a replay makes of them
        torch.testing.assert_close(biased_softmax(alpha.value), 2 / 3 * alpha.shares(), rtol=1e-5, atol=0)
    for _ in range(200):
        alpha.learn(torch.zeros(2))
    before = alpha.value.clone()
    alpha.learn(torch.tensor([1e6, -1e6]))
    wanted = torch.tensor([-0.5, 0.5])
    torch.testing.assert_close(differences(alpha.value - before), differences(wanted), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rate", [0.1, None])
def test_noise_alone_leaves_one_pathway_at_the_published_rate_and_not_at_the_default(rate: float | None) -> None:
    """Adam divides a gradient by its own size, so that alpha walks at random by about the rate a step."""
    settings = SearchSettings() if rate is None else SearchSettings(learning_rate=rate)
    generator = torch.Generator().manual_seed(0)
    alpha = LearnedAlpha(settings, 15)
    for _ in range(1500):
        alpha.learn(torch.randn(15, generator=generator))
    largest = alpha.shares().max().item()
    assert largest > 0.8 if rate == 0.1 else largest < 0.3


def test_a_gradient_that_is_not_finite_is_skipped() -> None:
    alpha = LearnedAlpha(SearchSettings(), 2)
    alpha.learn(torch.tensor([math.nan, 1.0]))
    assert torch.equal(alpha.value, torch.ones(2))


def test_alpha_is_recorded_every_so_often_and_smoothed() -> None:
    alpha = LearnedAlpha(SearchSettings(record_every=3, smoothing=0.75), 2)
    values = []
    for step in range(8):
        alpha.learn(torch.tensor([1.0, -1.0]) * (-1) ** step)
        values.append(alpha.value.clone())
    process = alpha.process(build().pathways[:2])
    assert process.times.tolist() == [0.0, 0.375, 0.75, 1.0]
    expected = [values[0]]
    for value in (values[3], values[6], values[7]):
        expected.append(0.75 * expected[-1] + 0.25 * value)
    torch.testing.assert_close(process.alpha, torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_a_restored_search_goes_on_with_the_same_numbers() -> None:
    straight, saved = (build(pathways={"transforms": ["identity-1x1"]}, search={"record_every": 2}) for _ in range(2))
    step = first_step(straight)
    for _ in range(2):
        straight.before_step(step)
        step.take()
    saved.load_state_dict(copy.deepcopy(straight.state_dict()))
    saved.adapters.load_state_dict(straight.adapters.state_dict())
    other = Step(saved, copy.deepcopy(step.student), step.taught, step.batch, step.holdout())
    for mine, theirs in zip(other.momenta, step.momenta, strict=True):
        mine.copy_(theirs)
    for _ in range(3):
        for method, its_step in ((straight, step), (saved, other)):
            method.before_step(its_step)
            its_step.take()
    assert torch.equal(straight.alpha.value, saved.alpha.value)
    assert torch.equal(straight.weights, saved.weights)
    assert all(torch.equal(a, b) for a, b in zip(step.tensors(), other.tensors(), strict=True))
    assert straight.files() == saved.files()
    assert straight.files().keys() == set(straight.FILES)
    assert straight.begin_interval(1) == saved.begin_interval(1)


def test_what_a_step_reads_keeps_its_place() -> None:
    method = build()
    before = method.weights.data_ptr()
    method.before_step(first_step(method))
    method.load_state_dict(method.state_dict())
    assert method.weights.data_ptr() == before


@pytest.mark.parametrize(
    "table", [{"learning_rate": 0}, {"record_every": 0}, {"smoothing": 1.0}, {"steps": 3}, {"order": "first"}]
)
def test_bad_settings_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"recipe key 'search\\.{next(iter(table))}'"):
        make_recipe({"method": "distpro-search", "search": table})


def test_a_fifth_of_the_images_is_held_out_unless_a_recipe_says_otherwise() -> None:
    assert make_recipe({"method": "distpro-search"}).data.holdout == 0.2
    assert make_recipe({"method": "distpro-search", "data": {"holdout": 0.1}}).data.holdout == 0.1
