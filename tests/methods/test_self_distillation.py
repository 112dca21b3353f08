"""Methods whose student teaches itself: their losses in float64, written out, and their state."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tfkd_fast.engine import make_recipe
from tfkd_fast.errors import UserError
from tfkd_fast.methods import Context, find_method
from tfkd_fast.methods.dlb import DLB
from tfkd_fast.methods.protocol import CompanionOutputs, Method, StepBatch
from tfkd_fast.models import Features, FeatureShapes, vgg8
from tfkd_fast.ops import SoftTargetStats

CANDIDATES, BATCH, CLASSES, IMAGES = 2, 6, 5, 40
MAPS = ((8, 4, 4), (16, 2, 2), (64, 2, 2))
"""Width and size of the stages; 64 is what a VGG-8 of an eighth of the width ends with."""
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def build(name: str, **loss: Any) -> Method:
    entry = find_method(name)
    context = Context(CLASSES, IMAGES, 10, 3, torch.device("cpu"), lambda epoch: 1.0, shapes=FeatureShapes(MAPS, 64))
    return entry.build(entry.settings.model_validate({"loss": loss}), context)


def random_logits(seed: int, size: int = BATCH) -> Tensor:
    """(n,B,C) float64."""
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randn(CANDIDATES, size, CLASSES, generator=generator, dtype=torch.float64)).requires_grad_()


def random_labels(seed: int, size: int = BATCH) -> Tensor:
    """(n,B)."""
    return torch.randint(CLASSES, (CANDIDATES, size), generator=torch.Generator().manual_seed(seed))


def random_images(seed: int, size: int = BATCH) -> Tensor:
    """Indices (n,B), each image once."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(IMAGES, generator=generator)[:size] for _ in range(CANDIDATES)])


def random_features(seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(CANDIDATES, BATCH, *shape, generator=generator, dtype=torch.float64) for shape in MAPS]
    after = [F.relu(stage).requires_grad_() for stage in maps]
    return Features(maps, after, after[-1].detach().mean((-2, -1)))


def loss_of(method: Method, logits: Tensor, batch: StepBatch) -> Tensor:
    """Losses (n,), after a look at the statistics, which are those of the batch."""
    losses, statistics = method.loss(logits, batch, slice(0, CANDIDATES))
    probabilities = logits.detach().softmax(-1)
    expected = SoftTargetStats(
        (logits.argmax(-1) == batch.labels).sum(-1).float(),
        probabilities.gather(-1, batch.labels.unsqueeze(-1)).sum((-2, -1)).float(),
        -(probabilities * probabilities.log()).sum((-2, -1)).float(),
    )
    torch.testing.assert_close(statistics, expected)
    return losses


def assert_same_gradients(losses: Tensor, expected: Tensor, leaves: list[Tensor], **tolerance: float) -> None:
    torch.testing.assert_close(losses, expected, **tolerance)
    ours = torch.autograd.grad(losses.sum(), leaves)
    for gradient, wanted in zip(ours, torch.autograd.grad(expected.sum(), leaves), strict=True):
        assert wanted.abs().max() > 1e-4
        torch.testing.assert_close(gradient, wanted, **tolerance)


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    """Of one sample, logits (C,)."""
    return logits.exp().sum().log() - logits[label]


def kl(teacher: Tensor, logits: Tensor) -> Tensor:
    """KL(teacher || softmax(logits)) of one sample, for a distribution without zeros."""
    return (teacher * (teacher.log() - torch.softmax(logits, -1).log())).sum()


def without(row: Tensor, label: int) -> Tensor:
    """All entries (C,) but that of the label."""
    return torch.cat([row[:label], row[label + 1 :]])


def zipf(scores: Tensor, label: int) -> Tensor:
    """Masses (C-1,) of the wrong classes, in their order."""
    masses = torch.tensor([1 / (1 + sum(float(b > a) for b in scores)) for a in scores], dtype=torch.float64)
    return without(masses, label) / without(masses, label).sum()


# CS-KD.


def test_cs_kd_is_cross_entropy_and_the_divergence_from_the_companion() -> None:
    method = build("cs-kd", temperature=2.5, weight=0.7)
    logits, other, labels = random_logits(0), random_logits(1), random_labels(2)
    batch = StepBatch(labels, random_images(3), None, companions=CompanionOutputs(other, labels, random_images(4)))
    expected = []
    for candidate in range(CANDIDATES):
        total = torch.zeros((), dtype=torch.float64)
        for z, companion, label in zip(logits[candidate], other[candidate], labels[candidate].tolist(), strict=True):
            soft = kl(torch.softmax(companion.detach() / 2.5, -1), z / 2.5)
            total = total + cross_entropy(z, label) + 0.7 * 2.5**2 * soft
        expected.append(total / BATCH)
    losses = loss_of(method, logits, batch)
    assert torch.autograd.grad(losses.sum(), other, retain_graph=True, allow_unused=True) == (None,)
    assert_same_gradients(losses, torch.stack(expected), [logits], **EXACT)


def test_cs_kd_without_weight_is_cross_entropy() -> None:
    logits, labels = random_logits(0), random_labels(2)
    companions = CompanionOutputs(random_logits(1), labels, random_images(4))
    losses = loss_of(
        build("cs-kd", weight=0.0), logits, StepBatch(labels, random_images(3), None, companions=companions)
    )
    expected = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(-1)
    torch.testing.assert_close(losses, expected, **EXACT)


# DLB.


class Steps:
    """Steps of two epochs: three and one of a smaller batch, then one that begins anew; and what the loss should be."""

    def __init__(self) -> None:
        self.sizes = [BATCH, BATCH, BATCH, BATCH - 2, BATCH]
        self.logits = [random_logits(10 + step, size) for step, size in enumerate(self.sizes)]
        self.again = [random_logits(20 + step, size) for step, size in enumerate(self.sizes)]
        self.labels = [random_labels(30 + step, size) for step, size in enumerate(self.sizes)]
        self.images = [random_images(40 + step, size) for step, size in enumerate(self.sizes)]

    def batch(self, step: int) -> StepBatch:
        """Beside it the images of the last, but for the first of each epoch."""
        size = self.sizes[step]
        labels, images = random_labels(50, size), random_images(60, size)
        if step in (1, 2, 3):
            labels, images = self.labels[step - 1][:, :size], self.images[step - 1][:, :size]
        companions = CompanionOutputs(self.again[step], labels, images)
        return StepBatch(self.labels[step], self.images[step], None, companions=companions)

    def expected(self, step: int, temperature: float, alpha: float) -> Tensor:
        companions = self.batch(step).companions
        assert companions is not None
        losses = []
        for candidate in range(CANDIDATES):
            hard = soft = torch.zeros((), dtype=torch.float64)
            for row in range(self.sizes[step]):
                z, again = self.logits[step][candidate, row], self.again[step][candidate, row]
                hard = hard + cross_entropy(z, int(self.labels[step][candidate, row]))
                hard = hard + cross_entropy(again, int(companions.labels[candidate, row]))
                if step in (1, 2, 3):
                    last = self.logits[step - 1][candidate, row].detach()
                    soft = soft + kl(torch.softmax(last / temperature, -1), again / temperature)
            size = self.sizes[step]
            losses.append(hard / (2 * size) + alpha * temperature**2 * soft / size)
        return torch.stack(losses)


def test_dlb_teaches_what_was_predicted_a_step_ago() -> None:
    method, steps = build("dlb", temperature=2.5, alpha=0.7), Steps()
    for step in range(len(steps.sizes)):
        losses = loss_of(method, steps.logits[step], steps.batch(step))
        leaves = [steps.logits[step], steps.again[step]]
        assert_same_gradients(losses, steps.expected(step, 2.5, 0.7), leaves, **EXACT)


def test_dlb_leaves_out_each_companion_that_was_not_shown_a_step_ago() -> None:
    """Also one that was shown two steps ago, in a row that the step between did not use."""
    method, steps = build("dlb"), Steps()
    for step in (2, 3):
        method.loss(steps.logits[step], steps.batch(step), slice(0, CANDIDATES))
    images = steps.images[2].clone()  # at an epoch's start: four rows of a step that showed others, two of none
    images[:, 1] = steps.images[3][:, 1]
    companions = CompanionOutputs(steps.again[4], steps.labels[4], images)
    losses, _ = method.loss(
        steps.logits[4], StepBatch(steps.labels[4], steps.images[4], None, companions=companions), slice(0, CANDIDATES)
    )
    for candidate in range(CANDIDATES):
        same = [row for row in range(4) if images[candidate, row] == steps.images[3][candidate, row]]
        assert 1 in same
        assert len(same) < 4
        expected = torch.zeros((), dtype=torch.float64)
        for row in range(BATCH):
            label, again = int(steps.labels[4][candidate, row]), steps.again[4][candidate, row]
            expected = expected + cross_entropy(steps.logits[4][candidate, row], label) / (2 * BATCH)
            expected = expected + cross_entropy(again, label) / (2 * BATCH)
            if row in same:
                last = torch.softmax(steps.logits[3][candidate, row].detach() / 3.0, -1)
                expected = expected + 9.0 * kl(last, again / 3.0) / BATCH
        torch.testing.assert_close(losses[candidate], expected, **EXACT)


def test_dlb_goes_on_from_its_state_with_the_same_numbers() -> None:
    method, restored, steps = build("dlb"), build("dlb"), Steps()
    for step in range(2):
        method.loss(steps.logits[step], steps.batch(step), slice(0, CANDIDATES))
    state = method.state_dict()
    expected = loss_of(method, steps.logits[2], steps.batch(2))
    restored.load_state_dict(state)
    assert torch.equal(loss_of(restored, steps.logits[2], steps.batch(2)), expected)
    restored.load_state_dict(state)  # over what it has seen since
    assert torch.equal(loss_of(restored, steps.logits[2], steps.batch(2)), expected)
    fresh = build("dlb")
    fresh.load_state_dict(build("dlb").state_dict())  # of a run that has not begun
    torch.testing.assert_close(loss_of(fresh, steps.logits[0], steps.batch(0)), steps.expected(0, 3.0, 1.0), **EXACT)


def test_what_dlb_reads_keeps_its_place() -> None:
    """A captured training step holds the addresses."""
    method, steps = build("dlb"), Steps()
    assert isinstance(method, DLB)
    method.loss(steps.logits[0], steps.batch(0), slice(0, CANDIDATES))
    before = (method._logits.data_ptr(), method._indices.data_ptr())
    for step in range(1, 5):
        method.loss(steps.logits[step], steps.batch(step), slice(0, CANDIDATES))
    method.load_state_dict(method.state_dict())
    assert (method._logits.data_ptr(), method._indices.data_ptr()) == before


# Zipf's label smoothing.


def wrong_classes(logits: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """KL(zipf || softmax over the wrong classes), (n,B)."""
    rows = []
    for z, label, score in zip(logits.flatten(0, 1), labels.flatten().tolist(), scores.flatten(0, 1), strict=True):
        rows.append(kl(zipf(score, label), without(z, label)))
    return torch.stack(rows).reshape(labels.shape)


def test_zipf_by_the_prediction_itself() -> None:
    method = build("zipf", rank="logits", weight=0.6)
    assert not method.needs_features
    logits, labels = random_logits(0), random_labels(1)
    hard = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    expected = (hard + 0.6 * wrong_classes(logits, labels, logits.detach())).mean(-1)
    losses = loss_of(method, logits, StepBatch(labels, random_images(2), None))
    assert_same_gradients(losses, expected, [logits], **EXACT)


@pytest.mark.parametrize("upsample", [1, 2])
def test_zipf_by_the_votes_of_all_places(upsample: int) -> None:
    """Four places or sixteen, so that of five classes some have equally many votes, or none."""
    method = build("zipf", weight=0.6, upsample=upsample)
    assert method.needs_features
    students = tuple(vgg8(CLASSES, width=0.125).double() for _ in range(CANDIDATES))
    logits, labels, features = random_logits(0), random_labels(1), random_features(2)
    scores = torch.zeros(CANDIDATES, BATCH, CLASSES, dtype=torch.float64)
    for candidate, student in enumerate(students):
        torch.nn.init.normal_(student.classifier.bias, std=0.01)
        for sample, map in enumerate(features.after_relu[-1][candidate].detach()):
            if upsample > 1:
                map = F.interpolate(map.unsqueeze(0), scale_factor=upsample, mode="bilinear")[0]
            for place in map.flatten(1).T:
                scores[candidate, sample, int(student.classifier(place).argmax())] += 1
    assert scores.sum(-1).unique().tolist() == [4 * upsample**2]
    hard = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    expected = (hard + 0.6 * wrong_classes(logits, labels, scores)).mean(-1)
    losses = loss_of(method, logits, StepBatch(labels, random_images(3), None, features=features, students=students))
    unused = torch.autograd.grad(losses.sum(), features.after_relu[-1], retain_graph=True, allow_unused=True)
    assert unused == (None,)
    assert_same_gradients(losses, expected, [logits], **EXACT)


def test_the_classifier_votes_at_each_place_of_every_network() -> None:
    """The average of what the places say is what the image says, where the pooled features are their average."""
    student = vgg8(CLASSES, width=0.125).eval()
    with torch.no_grad():
        logits, features = student(torch.randn(2, 3, 32, 32), return_features=True)
        places = student.get_submodule("classifier")(features.after_relu[-1].permute(0, 2, 3, 1))
    torch.testing.assert_close(places.mean((1, 2)), logits)


# USKD.


def test_uskd_is_the_sum_of_its_four_losses() -> None:
    method = build("uskd", alpha=0.3, beta=0.5, mu=0.7)
    head = method.adapters
    assert isinstance(head, torch.nn.Linear)
    head.double()
    logits, labels, features = random_logits(0), random_labels(1), random_features(2)
    expected = []
    for candidate in range(CANDIDATES):
        weak = [head(map.mean((-2, -1))) for map in features.after_relu[1][candidate]]
        probabilities = [
            float(torch.softmax(z, -1)[y]) for z, y in zip(logits[candidate].detach(), labels[candidate], strict=True)
        ]
        mean = sum(p**2 for p in probabilities) / BATCH
        total = torch.zeros((), dtype=torch.float64)
        for z, w, p, label in zip(logits[candidate], weak, probabilities, labels[candidate].tolist(), strict=True):
            total = total + (1 + 0.3 * (p**2 + 1 - mean)) * cross_entropy(z, label)
            smoothed = torch.tensor([0.9 * (c == label) + 0.1 / CLASSES for c in range(CLASSES)], dtype=torch.float64)
            total = total + 0.7 * kl(smoothed, w)
            sure, log_p = torch.softmax(w.detach(), -1), torch.log_softmax(z.detach(), -1)
            scores = sure / (1 - sure[label] + 1e-6) + log_p / (1 - log_p[label] + 1e-6)
            total = total + 0.5 * kl(zipf(scores, label), without(z, label))
        expected.append(total / BATCH)
    batch = StepBatch(labels, random_images(3), None, features=features)
    leaves = [logits, features.after_relu[1], head.weight, head.bias]
    # the table of smoothed labels is float32: its roundings of 6e-8 enter the loss of the weak head
    assert_same_gradients(loss_of(method, logits, batch), torch.stack(expected), leaves, rtol=1e-6, atol=1e-7)


def test_uskd_stays_finite_where_the_student_is_certain() -> None:
    method = build("uskd")
    logits, labels = torch.zeros(1, 3, CLASSES), torch.tensor([[0, 1, 2]])
    logits[0, 0, 0] = logits[0, 1, 4] = 200.0  # right, and wrong
    maps = [torch.full((1, 3, *shape), 1e4) for shape in MAPS]
    logits.requires_grad_()
    batch = StepBatch(labels, labels, None, features=Features(maps, maps, maps[-1].mean((-2, -1))))
    losses, _ = method.loss(logits, batch, slice(0, 1))
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_the_weak_head_of_uskd_follows_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build("uskd").adapters
    after_first = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), after_first), "the global random state is left alone"
    torch.manual_seed(2)
    second = build("uskd").adapters
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(second, torch.nn.Linear)
    assert first.weight.shape == (CLASSES, 16)
    assert torch.equal(first.weight, second.weight)


# All of them.


@pytest.mark.parametrize("name", ["cs-kd", "zipf", "uskd"])
def test_without_a_state_nothing_is_left_of_the_steps_before(name: str) -> None:
    """What a resumed run needs is the weights, those of adapters among them."""
    students = tuple(vgg8(CLASSES, width=0.125).double() for _ in range(CANDIDATES))

    def losses(method: Method, seed: int) -> Tensor:
        labels, companions = (
            random_labels(seed),
            CompanionOutputs(random_logits(7), random_labels(seed), random_images(8)),
        )
        batch = StepBatch(labels, random_images(seed), None, random_features(seed), (), companions, students)
        return loss_of(method, random_logits(seed), batch)

    seasoned, restored = build(name), build(name)
    losses(seasoned, 0)
    assert seasoned.state_dict() == {}
    restored.load_state_dict(seasoned.state_dict())
    assert torch.equal(losses(seasoned, 1), losses(restored, 1))


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("cs-kd", "temperature", 0.0),
        ("cs-kd", "weight", -1.0),
        ("dlb", "temperature", -3.0),
        ("dlb", "alpha", -0.1),
        ("zipf", "rank", "votes"),
        ("zipf", "weight", -0.1),
        ("zipf", "power", -1.0),
        ("zipf", "upsample", 0),
        ("uskd", "alpha", -0.1),
        ("uskd", "beta", -0.1),
        ("uskd", "mu", -0.1),
        ("uskd", "gamma", 1.0),
    ],
)
def test_settings_out_of_range_are_refused_in_a_sentence(method: str, key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^(recipe|unknown recipe) key 'loss\.{key}': [^\n]+$"):
        make_recipe({"method": method, "loss": {key: value}})
