"""The method: its loss against formulas in float64, what Theta learns, and what a look-ahead leaves as it was."""

import copy
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.steps import descend, rollback
from tfkd_fast import ops
from tfkd_fast.data import Batch
from tfkd_fast.errors import UserError
from tfkd_fast.events import TeachersWeighed
from tfkd_fast.methods import METHODS, Context
from tfkd_fast.methods.base import StepBatch, TeacherFacts, TeacherOutputs
from tfkd_fast.methods.several_teachers.mmkd import MMKD
from tfkd_fast.models import Features, FeatureShapes, ModelSettings, build_model, feature_shapes

CLASSES, BATCH, IMAGES = 4, 8, 40
CPU = torch.device("cpu")
SHAPES = (FeatureShapes(((6, 4, 4),), 6), FeatureShapes(((5, 4, 4),), 5), FeatureShapes(((9, 2, 2),), 9))
"""Of a student and two teachers."""

Teachers = Callable[[Tensor], tuple[TeacherOutputs, ...]]


def build(
    tables: dict[str, dict[str, Any]] | None = None,
    *,
    shapes: tuple[FeatureShapes, ...] = SHAPES,
    images: int = IMAGES,
    labels: int = CLASSES,
) -> MMKD:
    student, *teachers = shapes
    facts = tuple(TeacherFacts(f"t{m}", "vgg8", tuple(range(labels)), each) for m, each in enumerate(teachers))
    context = Context(CLASSES, images, 4, 0, CPU, lambda epoch: 1.0, shapes=student, teachers=facts, batch_size=BATCH)
    entry = METHODS["mmkd"]
    method = entry.build(entry.settings.model_validate(tables or {}), context)
    assert isinstance(method, MMKD)
    return method


# The loss.


def exact(method: MMKD) -> MMKD:
    """In float64, its warm-up over."""
    for module in (method.adapters, method.weights):
        module.double()
    return after(method, IMAGES)


def after(method: MMKD, steps: int) -> MMKD:
    """As if it had taken so many steps."""
    method.load_state_dict(method.state_dict() | {"steps": steps})
    return method


def random_features(n: int, batch: int, shapes: FeatureShapes, generator: torch.Generator) -> Features:
    maps = torch.randn(n, batch, *shapes.maps[-1], generator=generator, dtype=torch.float64)
    return Features([maps], [maps.relu().requires_grad_()], maps.mean((-2, -1)))


def random_step(n: int, batch: int = BATCH, seed: int = 0) -> tuple[Tensor, StepBatch]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(n, batch, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (n, batch), generator=generator)
    indices = torch.arange(batch).expand(n, -1)
    student, *teachers = (random_features(n, batch, shapes, generator) for shapes in SHAPES)
    outputs = tuple(
        TeacherOutputs(2.0 * torch.randn(n, batch, CLASSES, generator=generator), features) for features in teachers
    )
    return logits.requires_grad_(), StepBatch(labels, indices, features=student, teachers=outputs)


def perceptron(inputs: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    hidden = (inputs @ state[f"{name}.0.weight"].T + state[f"{name}.0.bias"]).clamp(min=0.0)
    scores = (hidden @ state[f"{name}.2.weight"].T + state[f"{name}.2.bias"]).exp()
    return scores / scores.sum(-1, keepdim=True)


def written_out(method: MMKD, logits: Tensor, batch: StepBatch, *, beta: float, rows: bool) -> Tensor:
    """CE + L_KD + beta L_feat of one candidate: logits (B,C), everything else with n = 1."""
    count, size, temperature = len(batch.teachers), len(logits), 4.0
    state = method.state_dict()["weights"]
    taught = [outputs.logits[0].double() for outputs in batch.teachers]
    omega = perceptron(torch.cat([*taught, logits.detach()], dim=1), state, "by_logits")
    maps = [outputs.features.after_relu[-1][0] for outputs in batch.teachers]
    student = batch.features.after_relu[-1][0]
    if size == BATCH:
        grams = [torch.einsum("ichw,jchw->ij", m, m) for m in (*maps, student.detach())]
        if rows:
            grams = [gram / gram.square().sum(1, keepdim=True).sqrt() for gram in grams]
        v = perceptron(torch.cat(grams, dim=1), state, "by_features")
    else:
        v = torch.full((size, count), 1.0 / count, dtype=torch.float64)
    total = -logits.log_softmax(-1)[torch.arange(size), batch.labels[0]].sum()
    with ops.using_backend("reference"):
        for m, connector in enumerate(copy.deepcopy(method.adapters)):
            teacher, own = (taught[m] / temperature).softmax(-1), (logits / temperature).log_softmax(-1)
            divergence = (teacher * (teacher.log() - own)).sum(-1)
            shown = student
            if maps[m].shape[-1] < student.shape[-1]:
                shown = student.unflatten(-1, (2, 2)).unflatten(-3, (2, 2)).mean((-3, -1))
            distance = (connector(shown) - maps[m]).square().mean((1, 2, 3))
            total = total + (omega[:, m] * temperature**2 * divergence + beta * v[:, m] * distance).sum()
    return total / size


@pytest.mark.parametrize("connector", ["deep", "linear"])
@pytest.mark.parametrize(("gram_norm", "size"), [("rows", BATCH), ("none", BATCH), ("rows", BATCH - 3)])
def test_the_loss_is_that_of_its_formula(gram_norm: str, size: int, connector: str) -> None:
    """The second teacher has smaller maps than the student. An incomplete batch has equal weights for features."""
    method = exact(build({"loss": {"gram_norm": gram_norm, "connector": connector, "beta": 30.0}}))
    logits, batch = random_step(1, size)
    expected = written_out(method, logits[0], batch, beta=30.0, rows=gram_norm == "rows")
    loss = method.loss(logits, batch)
    losses, statistics = loss.total, loss.statistics
    assert losses.shape == (1,)
    close = {"rtol": 1e-6, "atol": 1e-7}  # the connectors' norms keep statistics, weights of teachers come in float32
    torch.testing.assert_close(losses[0], expected, rtol=1e-9, atol=1e-9)
    leaves = [logits, batch.features.after_relu[-1], *method.adapters.parameters()]
    found = torch.autograd.grad(losses.sum(), leaves, retain_graph=True)
    theta = list(method.weights.parameters())
    of_theta = torch.autograd.grad(losses.sum(), theta, retain_graph=True, allow_unused=True)
    assert of_theta == (None,) * len(theta)
    wanted = torch.autograd.grad(written_out(method, logits[0], batch, beta=30.0, rows=gram_norm == "rows"), leaves[:2])
    torch.testing.assert_close(found[0], wanted[0], **close)
    torch.testing.assert_close(found[1], wanted[1], **close)
    assert all(gradient.abs().max() > 0 for gradient in found[2:])
    assert statistics.correct.tolist() == [(logits[0].argmax(-1) == batch.labels[0]).sum().item()]


def test_several_candidates_have_a_loss_each() -> None:
    """With beta 0, since connectors normalise over all images that they see."""
    method = exact(build({"loss": {"beta": 0.0}}))
    logits, batch = random_step(3)
    losses = method.loss(logits, batch).total
    for row in range(3):
        own = slice(row, row + 1)

        def of_row(features: Features, own: slice = own) -> Features:
            return Features([], [maps[own] for maps in features.after_relu], features.pooled[own])

        teachers = tuple(TeacherOutputs(each.logits[own], of_row(each.features)) for each in batch.teachers)
        alone = StepBatch(
            batch.labels[own], batch.indices[own], row, features=of_row(batch.features), teachers=teachers
        )
        loss = method.loss(logits[own], alone).total
        torch.testing.assert_close(loss, losses[own], rtol=1e-12, atol=1e-12)


def test_identical_teachers_are_one_teacher_for_any_weights() -> None:
    method = exact(build({"loss": {"beta": 0.0}}, shapes=(SHAPES[0], SHAPES[1], SHAPES[1], SHAPES[1])))
    logits, batch = random_step(1)
    batch = replace(batch, teachers=batch.teachers[:1] * 3)
    expected = F.cross_entropy(logits[0], batch.labels[0]) + ops.distillation_loss(
        logits[0], batch.teachers[0].logits[0], temperature=4.0
    )
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in method.weights.parameters():
                parameter.normal_()
        losses = method.loss(logits, batch).total
        torch.testing.assert_close(losses[0], expected, rtol=1e-12, atol=1e-12)


def test_beta_rises_over_the_warm_up() -> None:
    """Five batches an epoch, and a warm-up of two epochs."""
    method = build({"loss": {"warmup_epochs": 2.0, "beta": 50.0}})
    found = []
    for steps in (1, 5, 10, 11):
        found.append(after(method, steps).beta())
    assert found == pytest.approx([5.0, 25.0, 50.0, 50.0])


# Training, by a step of our own over a small VGG.

STUDENT = ModelSettings(width=0.125)
RATE, MOMENTUM, DECAY = 0.02, 0.9, 5e-4
PATTERNS = torch.randn(CLASSES, 1, 32, 32, generator=torch.Generator().manual_seed(9))


class Step:
    """`methods.base.TrainingStep`, and the step itself."""

    learning_rate, momentum, weight_decay, nesterov = RATE, MOMENTUM, DECAY, True

    def __init__(self, method: MMKD, student: nn.Module, teachers: Teachers) -> None:
        self.method, self.student, self.teach = method, student.train(), teachers
        self.weights = [*student.parameters(), *method.adapters.parameters()]
        self.momenta = [torch.zeros_like(weight) for weight in self.weights]
        self.batch: Batch

    def tensors(self) -> list[Tensor]:
        return [*self.weights, *self.momenta, *self.student.buffers(), *self.method.adapters.buffers()]

    def loss(self) -> Tensor:
        raise AssertionError("the look-ahead has no use for it")

    def descend(self, gradients: Sequence[Tensor]) -> None:
        descend(self, gradients)

    def holdout(self) -> Batch:
        raise AssertionError("the look-ahead has no use for it")

    def rollback(self) -> AbstractContextManager[None]:
        return rollback(self.tensors())

    def take(self, batch: Batch) -> None:
        self.batch = batch
        self.method.before_step(self)
        logits, features = self.student(batch.images, return_features=True)
        maps = [each.unsqueeze(0) for each in features.after_relu]
        shown = StepBatch(
            batch.labels.unsqueeze(0),
            batch.indices.unsqueeze(0),
            features=Features(maps, maps, features.pooled.unsqueeze(0)),
            teachers=self.teach(batch.images),
        )
        losses = self.method.loss(logits.unsqueeze(0), shown).total
        gradients = torch.autograd.grad(losses.sum(), self.weights)
        self.descend(gradients)


def networks(count: int) -> list[nn.Module]:
    return [build_model(STUDENT, CLASSES, 1, seed) for seed in range(count)]


def taught_by(teachers: list[nn.Module]) -> Teachers:
    @torch.no_grad()
    def teach(images: Tensor) -> tuple[TeacherOutputs, ...]:
        outputs = []
        for teacher in teachers:
            logits, features = teacher.eval()(images, return_features=True)
            maps = [each.unsqueeze(0) for each in features.after_relu]
            outputs.append(TeacherOutputs(logits.unsqueeze(0), Features(maps, maps, features.pooled.unsqueeze(0))))
        return tuple(outputs)

    return teach


def toy_batches(count: int) -> list[Batch]:
    """The pattern of a class under noise."""
    generator = torch.Generator().manual_seed(4)
    made = []
    for number in range(count):
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        images = PATTERNS[labels] + 2.0 * torch.randn(BATCH, 1, 32, 32, generator=generator)
        made.append(Batch(images, labels, BATCH * number + torch.arange(BATCH)))
    return made


def start(meta: dict[str, Any], teachers: Teachers | None = None, images: int = IMAGES) -> Step:
    student, *others = networks(3)
    shapes = feature_shapes(student, (1, 32, 32))
    method = build({"meta": {"buffer": 16} | meta, "loss": {"beta": 1.0}}, shapes=(shapes,) * 3, images=images)
    return Step(method, student, teachers or taught_by(others))


def test_a_look_ahead_changes_theta_and_nothing_else() -> None:
    """It comes with the third step, since two fill the buffer."""
    step = start({"period": 3})
    batches = toy_batches(3)
    for batch in batches[:2]:
        step.take(batch)
    before = [tensor.detach().clone() for tensor in step.tensors()]
    theta = copy.deepcopy(step.method.state_dict()["weights"])
    random_state = torch.get_rng_state()
    step.batch = batches[2]
    step.method.before_step(step)
    for tensor, saved in zip(step.tensors(), before, strict=True):
        assert torch.equal(tensor, saved)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert step.student.training
    assert all(weight.grad is None for weight in step.weights)
    for name, tensor in step.method.state_dict()["weights"].items():
        assert not torch.equal(tensor, theta[name]), name


@pytest.mark.parametrize("case", ["the buffer is not full", "it is not the period's step"])
def test_theta_stays_as_it_is_where(case: str) -> None:
    step = start({"period": 1, "buffer": 32} if case == "the buffer is not full" else {"period": 5})
    theta = copy.deepcopy(step.method.state_dict()["weights"])
    for batch in toy_batches(4):
        step.take(batch)
    for name, tensor in step.method.state_dict()["weights"].items():
        assert torch.equal(tensor, theta[name])


def test_a_gradient_that_is_not_finite_is_skipped() -> None:
    """At a learning rate of 0 nothing depends on Theta, and no direction has a length."""
    step = start({"period": 1})
    theta = copy.deepcopy(step.method.state_dict()["weights"])
    step.learning_rate = 0.0
    for batch in toy_batches(4):
        step.take(batch)
    for name, tensor in step.method.state_dict()["weights"].items():
        assert torch.equal(tensor, theta[name])
    (event,) = step.method.end_epoch([])
    assert isinstance(event, TeachersWeighed)
    assert (event.updates, event.skipped) == (0, 2)
    assert all(weight.isfinite().all() for weight in step.weights)


def test_what_is_misclassified_replaces_what_is_in_the_buffer() -> None:
    step = start({"period": 100})
    batches = toy_batches(3)
    for batch in batches[:2]:
        step.take(batch)
    logits = step.student(batches[2].images)  # in training mode, as the step will see them
    wrong = batches[2].indices[logits.argmax(-1) != batches[2].labels].tolist()
    assert 0 < len(wrong) < BATCH
    step.take(batches[2])
    _, _, kept = step.method.state_dict()["hard"]["kept"]
    assert sorted(index for index in kept.tolist() if index >= 2 * BATCH) == wrong


def test_a_teacher_of_random_logits_loses_its_weight() -> None:
    """The other one knows the patterns. Two epochs; the mean weight is that of the epoch's training images."""
    generator = torch.Generator().manual_seed(6)
    templates = F.normalize(PATTERNS.flatten(1), dim=1)
    maps = torch.zeros(1, BATCH, 64, 4, 4)
    features = Features([maps], [maps], maps.mean((-2, -1)))

    def teach(images: Tensor) -> tuple[TeacherOutputs, ...]:
        knowing = 0.3 * images.flatten(1) @ templates.T
        garbage = 3.0 * torch.randn(len(images), CLASSES, generator=generator)
        return tuple(TeacherOutputs(logits.unsqueeze(0), features) for logits in (garbage, knowing))

    epoch = toy_batches(24)
    step = start({"period": 2, "learning_rate": 1e-2}, teach, images=BATCH * len(epoch))
    means = []
    for number in range(2):
        step.method.begin_interval(number)
        for batch in epoch:
            step.take(batch)
        (event,) = step.method.end_epoch([])
        assert isinstance(event, TeachersWeighed)
        assert event.epoch == number + 1
        means.append(event.logit_weights)
        assert sum(means[-1]) == pytest.approx(1.0)
    assert means[1][0] < 0.5
    assert means[1][0] < means[0][0]


def test_a_resumed_run_goes_on_with_the_same_numbers() -> None:
    """Over a checkpoint as the engine writes it: student, adapters and optimiser by themselves, and the method's."""
    run = start({"period": 2})
    batches = toy_batches(10)
    for batch in batches[:6]:
        run.take(batch)
    run.method.end_epoch([])
    archive = io.BytesIO()
    torch.save(run.method.state_dict(), archive)
    archive.seek(0)
    resumed = start({"period": 2})
    resumed.method.load_state_dict(torch.load(archive, weights_only=True))
    with torch.no_grad():
        for tensor, saved in zip(resumed.tensors(), run.tensors(), strict=True):
            tensor.copy_(saved)
    for step in (run, resumed):
        for batch in batches[6:]:
            step.take(batch)
    for tensor, expected in zip(resumed.tensors(), run.tensors(), strict=True):
        assert torch.equal(tensor, expected)
    assert resumed.method.end_epoch([]) == run.method.end_epoch([])
    wanted = run.method.state_dict()
    for name, tensor in resumed.method.state_dict()["weights"].items():
        assert torch.equal(tensor, wanted["weights"][name])


# What is refused.


def test_a_buffer_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"meta\.buffer = 7 is smaller than a batch of 8 images"):
        build({"meta": {"buffer": 7}})


def test_teachers_must_know_all_classes() -> None:
    with pytest.raises(UserError, match="teacher t0 knows 3 of the 4 classes"):
        build(labels=3)
