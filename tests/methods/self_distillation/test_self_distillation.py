"""Methods whose student teaches itself within a step or two: their losses in float64, written out, and their state."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.steps import BATCH, CLASSES, SHAPES, assert_teaches, build, random_step
from tfkd_fast.errors import UserError
from tfkd_fast.methods import Method
from tfkd_fast.methods.base import CompanionOutputs, StepBatch
from tfkd_fast.methods.self_distillation.dlb import DLB
from tfkd_fast.models import Features, vgg8
from tfkd_fast.runs.recipe import make_recipe

CANDIDATES = 2
EXACT = 1e-12


def random_features(seed: int, size: int = BATCH) -> Features:
    """After ReLU, of two stages: the width of the first is that of `SHAPES`, of the last that of a narrow VGG-8."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (SHAPES.maps[0][0], 4, 4), (64, 2, 2)
    maps = [torch.randn(CANDIDATES, size, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    after = [F.relu(stage).requires_grad_() for stage in maps]
    return Features(maps, after, after[-1].detach().mean((-2, -1)))


def narrow_students() -> tuple[torch.nn.Module, ...]:
    """Whose classifiers take maps of width 64."""
    return tuple(vgg8(CLASSES, width=0.125).double() for _ in range(CANDIDATES))


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
    logits, batch = random_step(0, CANDIDATES)
    other, beside = random_step(1, CANDIDATES)
    batch = replace(batch, companions=CompanionOutputs(other, batch.labels, beside.indices))
    expected = []
    for candidate in range(CANDIDATES):
        total = torch.zeros((), dtype=torch.float64)
        rows = zip(logits[candidate], other[candidate].detach(), batch.labels[candidate].tolist(), strict=True)
        for z, companion, label in rows:
            total = total + cross_entropy(z, label) + 0.7 * 2.5**2 * kl(torch.softmax(companion / 2.5, -1), z / 2.5)
        expected.append(total / BATCH)
    assert_teaches(method, logits, batch, torch.stack(expected), EXACT)
    losses = method.loss(logits, batch).total
    assert torch.autograd.grad(losses.sum(), other, allow_unused=True) == (None,), "the companion is a constant"


# DLB.


def dlb_steps() -> list[tuple[Tensor, StepBatch]]:
    """Five of them; the fourth, the last of its epoch, is of four images."""
    steps = []
    for step, size in enumerate((BATCH, BATCH, BATCH, 4, BATCH)):
        (logits, batch), (again, beside) = random_step(step), random_step(10 + step)
        images, labels = beside.indices.clone(), beside.labels
        if step:
            _, last = steps[-1]
            if step < 4:
                images, labels = last.indices[:, :size].clone(), last.labels[:, :size]
            if step == 2:
                images[0, 3] = (images[0, 3] + 1) % 12  # another one
            if step == 4:  # of the last step at one place; of the step before it where the last had no images
                images[0, :4] = (last.indices[0] + 1) % 12
                images[0, 1] = last.indices[0, 1]
                images[0, 4:] = steps[2][1].indices[0, 4:]
        companions = CompanionOutputs(again.detach()[:, :size].requires_grad_(), labels[:, :size], images[:, :size])
        batch = StepBatch(batch.labels[:, :size], batch.indices[:, :size], companions=companions)
        steps.append((logits.detach()[:, :size].requires_grad_(), batch))
    return steps


def test_dlb_teaches_each_image_with_what_was_predicted_for_it_a_step_ago() -> None:
    method = build("dlb", temperature=2.5, alpha=0.7)
    last: list[tuple[int, Tensor]] = []
    for (logits, batch), taught in zip(dlb_steps(), (0, BATCH, BATCH - 1, 4, 1), strict=True):
        assert batch.companions is not None
        size = logits.shape[1]
        hard = soft = torch.zeros((), dtype=torch.float64)
        count = 0
        for row in range(size):
            again, image = batch.companions.logits[0, row], int(batch.companions.indices[0, row])
            hard = hard + cross_entropy(logits[0, row], int(batch.labels[0, row]))
            hard = hard + cross_entropy(again, int(batch.companions.labels[0, row]))
            if row < len(last) and last[row][0] == image:
                soft, count = soft + kl(torch.softmax(last[row][1] / 2.5, -1), again / 2.5), count + 1
        assert count == taught
        expected = (hard / (2 * size) + 0.7 * 2.5**2 * soft / size).unsqueeze(0)
        loss = method.loss(logits, batch)
        losses, statistics = loss.total, loss.statistics
        # the logits of the last step are kept in float32: of 10, they err by 5e-7
        torch.testing.assert_close(losses, expected, rtol=2e-6, atol=2e-6)
        leaves = [logits, batch.companions.logits]
        wanted = torch.autograd.grad(expected.sum(), leaves)
        for gradient, each in zip(torch.autograd.grad(losses.sum(), leaves), wanted, strict=True):
            torch.testing.assert_close(gradient, each, rtol=2e-6, atol=2e-6 / BATCH)
        assert statistics.correct.tolist() == (logits.argmax(-1) == batch.labels).sum(-1).tolist()
        last = [(int(batch.indices[0, row]), logits[0, row].detach()) for row in range(size)]


def test_dlb_goes_on_from_its_state_with_the_same_numbers_in_the_same_place() -> None:
    """A captured training step holds the addresses."""
    method, restored = build("dlb"), build("dlb")
    assert isinstance(method, DLB)
    addresses = [tensor.data_ptr() for tensor in method.candidate_tensors().values()]
    first, second, third, *_ = dlb_steps()
    for step in (first, second):
        method.loss(*step)
    state = copy.deepcopy(method.state_dict())
    expected = method.loss(*third).total
    restored.load_state_dict(state)
    method.load_state_dict(state)  # over what it has seen since
    for each in (restored, method):
        assert torch.equal(each.loss(*third).total, expected)
    assert [tensor.data_ptr() for tensor in method.candidate_tensors().values()] == addresses
    forgetful = build("dlb").loss(*third).total
    assert not torch.equal(forgetful, expected), "the state matters"


# Zipf's label smoothing.


def zipf_loss(logits: Tensor, labels: Tensor, scores: Tensor, weight: float) -> Tensor:
    """(n,)."""
    losses = []
    for z, label, score in zip(logits.flatten(0, 1), labels.flatten().tolist(), scores.flatten(0, 1), strict=True):
        losses.append(cross_entropy(z, label) + weight * kl(zipf(score, label), without(z, label)))
    return torch.stack(losses).reshape(labels.shape).mean(-1)


def test_zipf_by_the_prediction_itself() -> None:
    method = build("zipf", rank="logits", weight=0.6)
    assert not method.needs.features
    logits, batch = random_step(0, CANDIDATES)
    assert_teaches(method, logits, batch, zipf_loss(logits, batch.labels, logits.detach(), 0.6), EXACT)


@pytest.mark.parametrize("upsample", [1, 2])
def test_zipf_by_the_votes_of_all_places(upsample: int) -> None:
    """Four places or sixteen: of five classes some have equally many votes, or none."""
    method = build("zipf", weight=0.6, upsample=upsample)
    assert method.needs.features
    students, features = narrow_students(), random_features(2)
    logits, batch = random_step(0, CANDIDATES)
    scores = torch.zeros(CANDIDATES, BATCH, CLASSES, dtype=torch.float64)
    for candidate, student in enumerate(students):
        classifier = student.get_submodule("classifier")
        torch.nn.init.normal_(classifier.get_parameter("bias"), std=0.01)
        for sample, map in enumerate(features.after_relu[-1][candidate].detach()):
            if upsample > 1:
                map = F.interpolate(map.unsqueeze(0), scale_factor=upsample, mode="bilinear")[0]
            for place in map.flatten(1).T:
                scores[candidate, sample, int(classifier(place).argmax())] += 1
    assert scores.sum(-1).unique().tolist() == [4 * upsample**2]
    batch = replace(batch, features=features, students=students)
    assert_teaches(method, logits, batch, zipf_loss(logits, batch.labels, scores, 0.6), EXACT)


def test_the_classifier_votes_on_what_the_last_map_holds() -> None:
    """The average of what the places say is what the image says."""
    student = vgg8(CLASSES, width=0.125).eval()
    with torch.no_grad():
        logits, features = student(torch.randn(2, 3, 32, 32), return_features=True)
        places = student.classifier(features.after_relu[-1].permute(0, 2, 3, 1))
    torch.testing.assert_close(places.mean((1, 2)), logits)


# USKD.


def test_uskd_is_the_sum_of_its_four_losses() -> None:
    method = build("uskd", alpha=0.3, beta=0.5, mu=0.7)
    head = method.adapters
    assert isinstance(head, torch.nn.Linear)
    head.double()
    (logits, batch), features = random_step(0, CANDIDATES), random_features(2)
    batch = replace(batch, features=features)
    expected = []
    for candidate in range(CANDIDATES):
        weak = [head(map.mean((-2, -1))) for map in features.after_relu[0][candidate]]
        labels = batch.labels[candidate].tolist()
        known = [float(torch.softmax(z, -1)[y]) for z, y in zip(logits[candidate].detach(), labels, strict=True)]
        mean = sum(p**2 for p in known) / BATCH
        total = torch.zeros((), dtype=torch.float64)
        for z, w, p, label in zip(logits[candidate], weak, known, labels, strict=True):
            total = total + (1 + 0.3 * (p**2 + 1 - mean)) * cross_entropy(z, label)
            smoothed = torch.tensor([0.9 * (c == label) + 0.1 / CLASSES for c in range(CLASSES)], dtype=torch.float64)
            total = total + 0.7 * kl(smoothed, w)
            sure, log_p = torch.softmax(w.detach(), -1), torch.log_softmax(z.detach(), -1)
            scores = sure / (1 - sure[label] + 1e-6) + log_p / (1 - log_p[label] + 1e-6)
            total = total + 0.5 * kl(zipf(scores, label), without(z, label))
        expected.append(total / BATCH)
    # the table of smoothed labels is float32: its roundings of 6e-8 enter the loss of the weak head
    leaves = [features.after_relu[0], head.weight, head.bias]
    losses = method.loss(logits, batch).total
    wanted = torch.autograd.grad(torch.stack(expected).sum(), leaves, retain_graph=True)
    for gradient, each in zip(torch.autograd.grad(losses.sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(gradient, each, rtol=1e-6, atol=1e-7)
    assert_teaches(method, logits, batch, torch.stack(expected), 1e-6)


def test_uskd_stays_finite_where_the_student_is_certain() -> None:
    logits, labels = torch.zeros(1, 3, CLASSES), torch.tensor([[0, 1, 2]])
    logits[0, 0, 0] = logits[0, 1, 4] = 200.0  # right, and wrong
    maps = [torch.full((1, 3, *shape), 1e4) for shape in SHAPES.maps]
    batch = StepBatch(labels, labels, features=Features(maps, maps, maps[-1].mean((-2, -1))))
    losses = build("uskd").loss(logits.requires_grad_(), batch).total
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_the_weak_head_follows_from_the_seed_of_the_run_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build("uskd").adapters
    assert torch.equal(torch.get_rng_state(), before), "the global random state is left alone"
    torch.manual_seed(2)
    second = build("uskd").adapters
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(second, torch.nn.Linear)
    assert first.weight.shape == (CLASSES, SHAPES.maps[-2][0])
    assert torch.equal(first.weight, second.weight)


# All of them.


@pytest.mark.parametrize("name", ["cs-kd", "zipf", "uskd"])
def test_without_a_state_nothing_is_left_of_the_steps_before(name: str) -> None:
    """What a resumed run needs is the weights, those of adapters among them."""
    students, (others, _) = narrow_students(), random_step(9, CANDIDATES)

    def losses(method: Method, seed: int) -> Tensor:
        logits, batch = random_step(seed, CANDIDATES)
        companions = CompanionOutputs(others, batch.labels, batch.indices)
        batch = replace(batch, features=random_features(seed), companions=companions, students=students)
        return method.loss(logits, batch).total

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
