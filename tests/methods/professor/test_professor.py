"""Professors: their parts against formulas in float64, and a teacher that errs in a way that can be learned."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from tests.support.tables import make_table
from tfkd_fast.data import Batch
from tfkd_fast.errors import UserError
from tfkd_fast.events import ProfessorJudged
from tfkd_fast.methods import METHODS, Context
from tfkd_fast.methods.base import Material, Needs, StepBatch, TeacherCount, TeacherFacts, TeacherOutputs
from tfkd_fast.methods.one_teacher.logits.kd import KD, KDSettings
from tfkd_fast.methods.professor import Professors, ProfessorSettings, losses, professors, training
from tfkd_fast.methods.professor.images import ProfessorImages, augment_for_professor
from tfkd_fast.methods.professor.networks import Discriminator, Professor
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.models import Features, FeatureShapes
from tfkd_fast.runs.recipe import make_recipe

CPU = torch.device("cpu")
CLASSES, FEATURES, BATCH, TEMPERATURE = 6, 10, 8, 4.0


def context(teachers: int = 1, epochs: int = 10, num_classes: int = CLASSES, features: int = FEATURES) -> Context:
    shapes = FeatureShapes((), features)
    facts = tuple(TeacherFacts(f"run-{m}", "vgg13", tuple(range(num_classes)), shapes) for m in range(teachers))
    return Context(num_classes, 100, epochs, 3, CPU, lambda epoch: 1.0, teachers=facts)


def random_outputs(seed: int, n: int = 1, batch: int = BATCH) -> TeacherOutputs:
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(n, batch, CLASSES, generator=generator)
    return TeacherOutputs(logits, Features([], [], torch.randn(n, batch, FEATURES, generator=generator)))


def random_batch(n: int = 1, teachers: int = 1, seed: int = 0) -> StepBatch:
    labels = torch.randint(CLASSES, (n, BATCH), generator=torch.Generator().manual_seed(seed))
    indices = torch.arange(BATCH).expand(n, -1)
    outputs = tuple(random_outputs(seed + 1 + m, n) for m in range(teachers))
    return StepBatch(labels, indices, teachers=outputs)


def shaken(refiner: Professors) -> Professors:
    """As if trained: what the professors add to the logits is not nothing, and the same for every one of a shape."""
    generator = torch.Generator().manual_seed(9)
    for professor in refiner.networks:
        last = professor.generator[-1]
        last.weight.copy_(0.3 * torch.randn(last.weight.shape, generator=generator))
    return refiner


# The networks.


@pytest.mark.parametrize("variant", ["label-free", "label-conditioned"])
@pytest.mark.parametrize("n", [1, 3])
def test_an_untrained_professor_says_what_its_teacher_says(variant: str, n: int) -> None:
    refiner = Professors(
        make_table(ProfessorSettings, strategy="replace", variant=variant), context(teachers=2), TEMPERATURE
    )
    batch = random_batch(n, teachers=2)
    refined = refiner.refine(batch)
    assert refined.shape == (n, 2, BATCH, CLASSES)
    for m, outputs in enumerate(batch.teachers):
        assert torch.equal(refined[:, m], outputs.logits)


def test_only_a_professor_that_is_told_looks_at_the_label() -> None:
    batch = random_batch()
    other = replace(batch, labels=(batch.labels + 1) % CLASSES)
    for variant, differs in (("label-free", False), ("label-conditioned", True)):
        settings = make_table(ProfessorSettings, strategy="replace", variant=variant)
        refiner = shaken(Professors(settings, context(), TEMPERATURE))
        assert torch.equal(refiner.refine(batch), refiner.refine(other)) != differs


def test_the_size_of_a_professor_of_vgg13() -> None:
    """The sums of algorithms: 461 k weights to encode (612, 512, 256, 64) and 199 k to generate, biases and norms on
    top."""
    professor = Professor(512, 100, 64, 4.0, label_conditioned=False)

    def weights(part: torch.nn.Module) -> int:
        return sum(p.numel() for p in part.parameters() if p.dim() == 2)

    assert weights(professor.encoder) == 612 * 512 + 512 * 256 + 256 * 64
    assert weights(professor.generator) == 64 * 256 + 256 * 512 + 512 * 100


def test_a_discriminator_is_no_steeper_than_one() -> None:
    """Every layer has a largest singular value of 1, after enough power iterations; LeakyReLU is no steeper than 1."""
    discriminator = Discriminator(CLASSES, CLASSES, (32, 16))
    vectors, labels = torch.randn(BATCH, CLASSES), torch.zeros(BATCH, dtype=torch.int64)
    for _ in range(200):
        discriminator(vectors, labels)
    discriminator.eval()
    for layer in discriminator.layers:
        if isinstance(layer, torch.nn.Linear):
            assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1.0, abs=1e-3)


# The losses.


def others_by_hand(row: list[float], label: int, temperature: float) -> list[float]:
    exponentials = [0.0 if c == label else math.exp(value / temperature) for c, value in enumerate(row)]
    return [value / sum(exponentials) for value in exponentials]


def test_the_correlation_loss_compares_what_is_not_the_label() -> None:
    outputs, batch = random_outputs(5), random_batch()
    labels = batch.labels[0]
    said = outputs.logits[0].double()
    logits = random_outputs(6).logits[0].double().requires_grad_()
    others = losses.other_classes(said, labels, TEMPERATURE)
    total = 0.0
    for i in range(BATCH):
        q = others_by_hand(said[i].tolist(), int(labels[i]), TEMPERATURE)
        p = others_by_hand(logits[i].tolist(), int(labels[i]), TEMPERATURE)
        assert others[i].tolist() == pytest.approx(q, rel=1e-12)
        total += sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)
    loss = losses.correlation_loss(logits, labels, others, TEMPERATURE)
    assert loss.item() == pytest.approx(total / BATCH, rel=1e-12)

    (gradient,) = torch.autograd.grad(loss, logits)  # (p - q) / (T B), and nothing for the label
    expected = (losses.other_classes(logits.detach(), labels, TEMPERATURE) - others) / (TEMPERATURE * BATCH)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_what_has_no_prototype_adds_nothing() -> None:
    logits = random_outputs(6).logits[0].double().requires_grad_()
    labels = random_batch().labels[0]
    loss = losses.correlation_loss(logits, labels, torch.zeros(BATCH, CLASSES, dtype=torch.float64), TEMPERATURE)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0.0
    assert not gradient.any()


def test_prototypes_against_a_loop() -> None:
    prototypes = losses.Prototypes(CLASSES, TEMPERATURE, CPU)
    sums: dict[int, list[list[float]]] = {}
    for seed in range(4):
        logits = random_outputs(seed).logits[0]
        labels = logits.argmax(1)
        labels[::2] = 1  # most of them wrong
        labels[labels == 2] = 3  # and class 2 is nobody's
        prototypes.add(logits, labels)
        for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
            if row.index(max(row)) == label:
                exponentials = [math.exp(value / TEMPERATURE) for value in row]
                sums.setdefault(label, []).append([value / sum(exponentials) for value in exponentials])
    others = prototypes.others()
    assert others.dtype == torch.float32
    assert not others[2].any()
    assert len(sums) >= 3
    for label, rows in sums.items():
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        rest = [0.0 if c == label else mass / (1.0 - mean[label]) for c, mass in enumerate(mean)]
        assert others[label].tolist() == pytest.approx(rest, rel=1e-6)  # float32


def test_the_hinge_losses() -> None:
    real, fake = torch.tensor([0.5, 3.0, -1.0]), torch.tensor([-2.0, 0.0, 1.5])
    assert losses.discriminator_loss(real, fake).item() == pytest.approx((0.5 + 0 + 2) / 3 + (0 + 1 + 2.5) / 3)
    counts = torch.tensor([True, True, False])
    assert losses.discriminator_loss(real, fake, counts).item() == pytest.approx((0.5 + 0) / 2 + (0 + 1 + 2.5) / 3)
    none = torch.zeros(3, dtype=torch.bool)
    assert losses.discriminator_loss(real, fake, none).item() == pytest.approx((0 + 1 + 2.5) / 3)
    assert losses.generator_loss(fake).item() == pytest.approx((2.0 - 0.0 - 1.5) / 3)


def assert_first_step_of_adam(old: Iterable[Tensor], new: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
    """It has the size of the learning rate, and the sign of the gradient, where that is beyond rounding and epsilon."""
    gradients = list(gradients)
    largest, compared = max(float(gradient.abs().max()) for gradient in gradients), 0
    for before, after, gradient in zip(old, new, gradients, strict=True):
        clear = gradient.abs() > 1e-2 * largest
        compared += int(clear.sum())
        expected = -make_table(ProfessorSettings).learning_rate * gradient[clear].sign()
        torch.testing.assert_close((after - before)[clear], expected, rtol=1e-2, atol=1e-7)
    assert compared > 1000


def test_a_step_follows_the_gradients_that_are_written_out_here() -> None:
    settings = make_table(ProfessorSettings, correlation=0.7, output_adversary=0.3, code_adversary=0.2)
    torch.manual_seed(0)
    professor = Professor(FEATURES, CLASSES, settings.code_size, TEMPERATURE, label_conditioned=False)
    lesson = training.ProfessorTraining(professor, settings, CLASSES, seed=3, number=0)
    outputs, labels = random_outputs(1), random_batch().labels[0]
    said, h = outputs.logits[0], outputs.features.pooled[0]
    said[:4].scatter_(1, labels[:4].unsqueeze(1), 9.0)  # half of them right
    right = said.argmax(1) == labels
    assert 0 < right.sum() < BATCH
    lesson.observe(said, labels)
    lesson.begin_epoch(0)
    student, judges = copy.deepcopy(professor), copy.deepcopy((lesson.output_discriminator, lesson.code_discriminator))
    lesson.step(h, said, labels, torch.arange(BATCH), 0)
    assert lesson.teacher_error == pytest.approx(100 * float((~right).double().mean()))

    refined, code = student(h, said, labels)
    real, fake = ((z / TEMPERATURE).log_softmax(1) for z in (said, refined.detach()))
    output_discriminator, code_discriminator = judges
    noise = lesson.noise(code, torch.arange(BATCH), 0)
    objective = (1 - output_discriminator(real, labels)[right]).clamp(min=0).mean()
    objective = objective + (1 + output_discriminator(fake, labels)).clamp(min=0).mean()
    objective = objective + (1 - code_discriminator(noise, labels)).clamp(min=0).mean()
    objective = objective + (1 + code_discriminator(code.detach(), labels)).clamp(min=0).mean()
    own = [*output_discriminator.parameters(), *code_discriminator.parameters()]
    moved = [*lesson.output_discriminator.parameters(), *lesson.code_discriminator.parameters()]
    assert_first_step_of_adam(own, moved, torch.autograd.grad(objective, own))

    others = losses.other_classes(said, labels, TEMPERATURE)
    others = torch.where(right.unsqueeze(1), others, lesson.prototypes.others()[labels])
    for judge in (lesson.output_discriminator, lesson.code_discriminator):
        judge.eval()  # no further power iteration
    q = (refined / TEMPERATURE).softmax(1)
    p = q.scatter(1, labels.unsqueeze(1), 0.0)
    p = p / p.sum(1, keepdim=True)
    divergence = torch.xlogy(others, others) - others * p.clamp(min=1e-30).log()
    objective = -refined.log_softmax(1)[torch.arange(BATCH), labels].mean()
    objective = objective + 0.7 * divergence.sum(1).mean()
    objective = objective - 0.3 * lesson.output_discriminator(q.log(), labels).mean()
    objective = objective - 0.2 * lesson.code_discriminator(code, labels).mean()
    own = list(student.parameters())
    assert_first_step_of_adam(own, professor.parameters(), torch.autograd.grad(objective, own))


# What they learn from.


def images_of(count: int) -> Callable[[int], Iterator[Batch]]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, 3, 8, 8, generator=generator)

    def epoch(number: int) -> Iterator[Batch]:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(number))
        for rows in order.split(32):
            yield Batch(images[rows], rows % CLASSES, rows)

    return epoch


def test_images_are_kept_by_their_index_and_never_learned_from() -> None:
    lessons = ProfessorImages(images_of(1000), make_table(ProfessorSettings), seed=7)

    def indices(batches: Iterable[Batch]) -> set[int]:
        return {int(index) for batch in batches for index in batch.indices}

    kept, choice = indices(lessons.evaluation_batches()), indices(lessons.validation_batches())
    assert not kept & choice
    assert (
        indices(lessons.training_batches(0)) == indices(lessons.training_batches(5)) == set(range(1000)) - kept - choice
    )
    assert 0.15 < len(kept) / 1000 < 0.25  # four standard deviations of 1,000 draws
    assert 0.06 < len(choice) / 1000 < 0.14


@pytest.mark.parametrize(("cutout", "jitter"), [(0, 0.0), (8, 0.0), (16, 0.3), (0, 0.3)])
def test_harder_images_against_a_loop(cutout: int, jitter: float) -> None:
    """A square of zeros, somewhere; around it, an affine map of the colours of each image."""
    images = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = make_table(ProfessorSettings, cutout=cutout, jitter=jitter)
    result = augment_for_professor(images, torch.arange(40), settings, seed=1, epoch=2)
    if not cutout and not jitter:
        assert result is images
    sizes, ends = set(), set()
    for image, shown in zip(images, result, strict=True):
        hidden = (shown == 0).all(0)
        if cutout:
            rows, columns = hidden.any(1).nonzero().flatten(), hidden.any(0).nonzero().flatten()
            assert len(rows) * len(columns) == hidden.sum()  # a rectangle
            sizes |= {len(rows), len(columns)}
            ends |= {int(side[end]) for side in (rows, columns) for end in (0, -1) if len(side) < cutout}
        grey = image.mean(0)
        kept = ~hidden
        if jitter:  # shown = a image + b grey + c, with a, b, c of the image
            design = torch.stack([image[:, kept].flatten(), grey[kept].repeat(3), torch.ones(3 * int(kept.sum()))], 1)
            values = shown[:, kept].reshape(-1, 1)
            found = torch.linalg.lstsq(design.double(), values).solution
            assert (design.double() @ found - values).abs().max() < 1e-10
            contrast = float(found[0] + found[1])  # of a grey pixel
            assert 1 - jitter <= contrast <= 1 + jitter
            assert 1 - jitter <= float(found[0]) / contrast <= 1 + jitter
            brightness = float(found[2]) - float(image.mean()) * (1 - contrast)
            assert abs(brightness) <= jitter
        else:
            assert torch.equal(shown[:, kept], image[:, kept])
    assert max(sizes, default=0) == cutout
    if cutout:
        assert {0, 31} <= ends  # some are cut off, at one border or the other


def test_harder_images_are_a_function_of_epoch_and_index() -> None:
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    settings = make_table(ProfessorSettings)
    together = augment_for_professor(images, torch.arange(6), settings, seed=1, epoch=2)
    alone = augment_for_professor(images[3:4], torch.tensor([3]), settings, seed=1, epoch=2)
    torch.testing.assert_close(together[3:4], alone)
    assert not torch.equal(together, augment_for_professor(images, torch.arange(6), settings, seed=1, epoch=3))


# The strategies.


def kd(settings: dict[str, Any], epochs: int = 10, **loss: float) -> KD:
    return KD(KDSettings.model_validate({**settings, "loss": loss}), context(epochs=epochs))


def kl(teacher: Tensor, logits: Tensor) -> Tensor:
    return (teacher * (teacher.log() - logits.log_softmax(-1))).sum(-1).mean(-1)


def said_and_refined(batch: StepBatch, variant: str = "label-free") -> tuple[Tensor, Tensor]:
    """(n,B,C) float64 each, of the first teacher and of the shaken professor."""
    refiner = shaken(
        Professors(make_table(ProfessorSettings, strategy="replace", variant=variant), context(), TEMPERATURE)
    )
    return batch.teachers[0].logits.double(), refiner.refine(batch)[:, 0].double()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("variant", ["label-free", "label-conditioned"])
def test_joint_teaching_is_kd_from_both(n: int, variant: str) -> None:
    """The same gradient as (1-g) KD(t) + g KD(p), and the loss of it less a constant of the teachers."""
    method = kd({"professor": {"strategy": "joint", "share": 0.3, "variant": variant}}, temperature=3.0, alpha=0.8)
    shaken(method.professors)
    batch = random_batch(n)
    logits = random_outputs(4, n).logits.double().requires_grad_()
    said, refined = said_and_refined(batch, variant)
    label = torch.stack([-logits.log_softmax(-1)[i, torch.arange(BATCH), batch.labels[i]].mean() for i in range(n)])
    both = sum(w * kl((z / 3.0).softmax(-1), logits / 3.0) for w, z in ((0.7, said), (0.3, refined)))
    expected = 0.8 * 9.0 * both + 0.2 * label
    loss = method.loss(logits, batch).total
    (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)  # teachers are float32
    further = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    again = method.loss(further, batch).total
    both = sum(w * kl((z / 3.0).softmax(-1), further / 3.0) for w, z in ((0.7, said), (0.3, refined)))
    label = torch.stack([-further.log_softmax(-1)[i, torch.arange(BATCH), batch.labels[i]].mean() for i in range(n)])
    torch.testing.assert_close(again - loss, 0.8 * 9.0 * both + 0.2 * label - expected, rtol=1e-5, atol=1e-5)


def test_selective_teaching_against_a_loop() -> None:
    batch = random_batch(2)
    refiner = shaken(
        Professors(make_table(ProfessorSettings, strategy="selective", margin=0.05), context(), TEMPERATURE)
    )
    said, refined = said_and_refined(batch)
    result = refiner.refine(batch)[:, 0].double()
    chosen = []
    for p, i in torch.cartesian_prod(torch.arange(2), torch.arange(BATCH)).tolist():
        label = int(batch.labels[p, i])
        wrong = int(said[p, i].argmax()) != label
        less = float(said[p, i].softmax(0)[label]) < float(refined[p, i].softmax(0)[label]) - 0.05
        chosen.append(wrong or less)
        assert torch.equal(result[p, i], refined[p, i] if chosen[-1] else said[p, i])
    assert any(chosen)
    assert not all(chosen)


def test_a_sure_teacher_is_replaced_where_it_is_less_sure_than_its_professor() -> None:
    labels = torch.tensor([0, 0, 0])
    said = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.3, 0.5, 0.2]]).log()
    refined = torch.tensor([[0.65, 0.2, 0.15], [0.59, 0.3, 0.11], [0.1, 0.8, 0.1]]).log()
    result = professors.select_logits(said, refined, labels, 0.1)
    assert torch.equal(result, torch.stack([refined[0], said[1], refined[2]]))


def test_staged_teaching_changes_at_half_of_the_run_in_place() -> None:
    method = kd({"professor": {"strategy": "staged"}}, epochs=5)
    shaken(method.professors)
    batch = random_batch()
    said, refined = said_and_refined(batch)
    address = method.professors.second_half.data_ptr()
    for epoch, expected in enumerate([said, said, said, refined, refined]):
        method.begin_interval(epoch)
        assert torch.equal(method.teacher_logits(batch)[:, 0].double(), expected)
    assert method.professors.second_half.data_ptr() == address


class OfSeveral(KD):
    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), teachers=TeacherCount(1, None))


@pytest.mark.parametrize("adjust", ["label-mix", "swap"])
def test_teachers_can_be_adjusted_instead(adjust: str) -> None:
    share = {"label_share": 0.2} if adjust == "label-mix" else {}
    adjusted = {"teachers": {"adjust": adjust, **share}, "loss": {"temperature": 3.0}}
    method = OfSeveral(KDSettings.model_validate(adjusted), context(teachers=2))
    batch = random_batch(2, teachers=2)
    result = method.teacher_logits(batch).double()
    for m, outputs in enumerate(batch.teachers):
        for p, i in torch.cartesian_prod(torch.arange(2), torch.arange(BATCH)).tolist():
            row, label = outputs.logits[p, i].double(), int(batch.labels[p, i])
            if adjust == "swap":
                expected, best = row.clone(), int(row.argmax())
                expected[label], expected[best] = row[best], row[label]
                assert torch.equal(result[p, m, i], expected)
            else:
                mixture = 0.8 * (row / 3.0).softmax(0)
                mixture[label] += 0.2
                torch.testing.assert_close((result[p, m, i] / 3.0).softmax(0), mixture, rtol=1e-5, atol=1e-7)


# A whole preparation.


def systematic(num_classes: int = 8, size: int = 4, count: int = 2500) -> Material:
    """A teacher whose features tell the classes, and whose last layer takes class 0 for others, and others for class 1.

    Images are noise around the mean of their class; the teacher's logits are those of the Bayes rule, but for a bias
    against class 0 and for class 1 that nothing warrants.
    """
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(num_classes, 3 * size * size, generator=generator)
    labels = torch.randint(num_classes, (count,), generator=generator)
    images = means[labels] + 2.0 * torch.randn(count, 3 * size * size, generator=generator)
    images = images.view(count, 3, size, size)

    def unseen(epoch: int) -> Iterator[Batch]:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(128):
            yield Batch(images[rows], labels[rows], rows)

    def teach(shown: Tensor) -> tuple[TeacherOutputs, ...]:
        flat = shown.flatten(1)
        scores = (flat @ means.T - 0.5 * means.square().sum(1)) / 4.0
        logits = scores.clone()
        logits[:, 0] -= 4.0
        logits[:, 1] += 4.0
        return (TeacherOutputs(logits.unsqueeze(0), Features([], [], flat.unsqueeze(0))),)

    return Material(fit=unseen, unseen=unseen, teach=teach)


def prepared(**professor: Any) -> tuple[KD, list[ProfessorJudged]]:
    values = {"epochs": 5, "learning_rate": 2e-3, "cutout": 0, "jitter": 0.0, **professor}
    method = KD(KDSettings.model_validate({"professor": values}), context(num_classes=8, features=48))
    events = list(method.prepare(systematic()))
    assert all(isinstance(event, ProfessorJudged) for event in events)
    return method, [event for event in events if isinstance(event, ProfessorJudged)]


def test_a_professor_learns_where_its_teacher_errs_and_keeps_the_rest() -> None:
    method, (event,) = prepared()
    assert event.teacher == "run-0"
    assert event.teacher_error > 3.0
    assert event.epochs > 0
    assert 2150 < event.images + event.kept_images < 2350  # nine tenths of 2,500
    assert event.professor_top1 >= event.teacher_top1 + 0.3
    assert event.spearman >= 0.6
    assert event.verdict.startswith("the professor is better than its teacher, +")
    assert event.warning == ""
    (summary,) = method.summary()["professors"]
    assert {key: getattr(event, key) for key in summary} == summary


def test_a_state_restores_the_professors_without_training() -> None:
    method, _ = prepared(epochs=2)
    batch = random_batch()
    generator = torch.Generator().manual_seed(0)
    outputs = TeacherOutputs(
        torch.randn(1, BATCH, 8, generator=generator), Features([], [], torch.randn(1, BATCH, 48, generator=generator))
    )
    batch = replace(batch, teachers=(outputs,))
    assert not torch.equal(method.teacher_logits(batch)[:, 0], outputs.logits)
    restored = KD(KDSettings.model_validate({"professor": {}}), context(num_classes=8, features=48))
    addresses = [tensor.data_ptr() for tensor in restored.professors.networks[0].state_dict().values()]
    restored.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(method.teacher_logits(batch), restored.teacher_logits(batch))
    assert restored.summary() == method.summary()
    assert [tensor.data_ptr() for tensor in restored.professors.networks[0].state_dict().values()] == addresses


def test_preparing_leaves_the_global_random_state_alone_and_is_a_function_of_the_seed() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, _ = prepared(epochs=1)
    assert torch.equal(torch.rand(3), expected)
    again, _ = prepared(epochs=1)
    for a, b in zip(*(m.state_dict()["professors"]["professors"][0].values() for m in (first, again)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("label_conditioned", [False, True])
def test_the_best_epoch_is_taken(label_conditioned: bool) -> None:
    """Of one that is told the label, the last."""
    professor = Professor(4, 3, 64, 4.0, label_conditioned=label_conditioned)
    lesson = training.ProfessorTraining(professor, make_table(ProfessorSettings), 3, seed=0, number=0)
    states = []
    for epochs, loss in enumerate((3.0, 1.0, 2.0, 1.0)):
        states.append(copy.deepcopy(professor.state_dict()))
        lesson.keep_if_best(loss, epochs)
        lesson.begin_epoch(epochs)
        lesson.step(torch.randn(8, 4), torch.randn(8, 3), torch.randint(3, (8,)), torch.arange(8), epochs)
    lesson.restore_best()
    best = 3 if label_conditioned else 1
    assert lesson.best_epochs == best
    for name, value in professor.state_dict().items():
        torch.testing.assert_close(value, states[best][name], rtol=0, atol=0)


def test_a_professor_that_only_forgets_is_its_teacher() -> None:
    """A learning rate at which nothing is learned."""
    _, (event,) = prepared(epochs=2, learning_rate=1e4)
    assert event.epochs == 0
    assert event.professor_top1 == event.teacher_top1
    assert event.verdict == "the professor was never better than its teacher, and is that teacher"


def test_a_professor_is_fixed_once_it_is_trained() -> None:
    method, _ = prepared(epochs=1)
    (professor,) = method.professors.networks
    assert not professor.training
    assert not any(parameter.requires_grad for parameter in professor.parameters())


# The report.


def test_the_rank_correlation_is_scipys() -> None:
    first, second = random_outputs(1).logits[0], random_outputs(2).logits[0]
    labels = random_batch().labels[0]
    found = training.spearman(first, second, labels)
    for i in range(BATCH):
        others = [c for c in range(CLASSES) if c != int(labels[i])]
        assert found[i].item() == pytest.approx(spearmanr(first[i, others], second[i, others]).statistic)
    assert training.spearman(first[:, :2], second[:, :2], labels.clamp(max=1)).shape == (0,)


def figures(**values: float) -> ProfessorJudged:
    """Of a professor that learned from 400 images and is judged by 100."""
    usual = {"teacher_error": 12.0, "teacher_top1": 70.0, "professor_top1": 69.0, "margin": 1.5, "spearman": 0.9}
    return ProfessorJudged(teacher="run-0", images=400, epochs=3, kept_images=100, **usual | values)


@pytest.mark.parametrize(
    ("top1", "sentence"),
    [
        (73.0, "the professor is better than its teacher, +3.0 ± 1.5 points on 100 images"),
        (71.0, "the professor is not clearly better than its teacher, +1.0 ± 1.5 points"),
        (69.0, "the professor is no better than its teacher, -1.0 ± 1.5 points"),
    ],
)
def test_a_report_says_plainly_what_a_professor_is_worth(top1: float, sentence: str) -> None:
    event = training.in_words(figures(professor_top1=top1))
    assert event.verdict.startswith(sentence)
    assert event.warning == ""


def test_the_accuracy_of_a_professor_that_is_told_the_label_says_nothing() -> None:
    _, (event,) = prepared(epochs=1, variant="label-conditioned")
    assert math.isnan(event.professor_top1)
    assert "told the label" in event.verdict
    assert event.spearman > 0.6


def test_the_margin_of_a_difference_is_that_of_its_pairs() -> None:
    """Of 10 images both get 6, the professor 3 more and the teacher 1 more: differences 1, 1, 1, -1 and six zeros."""
    labels = torch.zeros(10, dtype=torch.int64)
    wrong, right = torch.tensor([0.0, 1.0, 0.5]), torch.tensor([1.0, 0.0, 0.5])
    said = torch.stack([right] * 6 + [wrong] * 3 + [right])
    refined = torch.stack([right] * 6 + [right] * 3 + [wrong])
    lesson = training.ProfessorTraining(
        Professor(4, 3, 64, 4.0, label_conditioned=False), make_table(ProfessorSettings), 3, seed=0, number=0
    )
    lesson.step(torch.randn(4, 4), said[5:9], labels[5:9], torch.arange(4), 0)
    report = training.judge("run-0", lesson, [(said[:4], refined[:4], labels[:4]), (said[4:], refined[4:], labels[4:])])
    variance = (3 * (1 - 0.2) ** 2 + (-1 - 0.2) ** 2 + 6 * 0.2**2) / 10
    assert (report.teacher_top1, report.professor_top1) == (70.0, 90.0)
    assert report.teacher_error == 75.0
    assert report.margin == pytest.approx(100 * 1.96 * math.sqrt(variance / 10))
    assert report.spearman == pytest.approx(5 / 7)  # of the seven that the teacher gets, one order is turned


def test_a_teacher_that_hardly_errs_is_warned_of() -> None:
    warning = training.in_words(figures(teacher_error=2.9)).warning
    assert "run-0 errs on 2.9 %" in warning
    assert "data.holdout" in warning


# What is refused.


def test_no_image_or_too_few_that_are_new_to_the_teachers() -> None:
    method = kd({"professor": {}})
    material = systematic()
    with pytest.raises(UserError, match=r"there are none: train the teachers .* data\.holdout larger"):
        list(method.prepare(Material(material.fit, None, material.teach)))

    def two(epoch: int) -> Iterator[Batch]:
        yield Batch(*(column[:2] for column in next(iter(material.fit(epoch)))))

    method = KD(KDSettings.model_validate({"professor": {}}), context(num_classes=8, features=48))
    with pytest.raises(UserError, match="too few images"):
        list(method.prepare(Material(material.fit, two, material.teach)))


def test_a_professor_that_diverges_ends_the_run_before_it_begins() -> None:
    """One that is told the label keeps its latest weights; the other is its teacher until it is better."""
    with pytest.raises(UserError, match=r"of teacher run-0 diverged, .* is not finite: lower professor\.learning_rate"):
        prepared(variant="label-conditioned", epochs=1, learning_rate=1e30)
    _, (judged,) = prepared(epochs=1, learning_rate=1e30)
    assert judged.epochs == 0


def test_a_professor_beside_its_controls() -> None:
    with pytest.raises(UserError, match=r"teachers\.adjust swap is what a professor is compared with"):
        kd({"professor": {}, "teachers": {"adjust": "swap"}})


@pytest.mark.parametrize(
    ("key", "value"), [("strategy", "both"), ("share", 1.0), ("margin", -0.1), ("epochs", 0), ("jitter", 1.0)]
)
def test_bad_settings(key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"professor\.{key}"):
        make_recipe({"method": "professor", "professor": {key: value}})


class OfFeatures(KD):
    """One that reads more than logits."""

    def __init__(self, settings: KDSettings, context: Context) -> None:
        TaughtStudent.__init__(self, settings, context)


@pytest.mark.parametrize("tables", [{"professor": {}}, {"teachers": {"adjust": "swap"}}])
def test_a_method_that_takes_its_teachers_as_they_are(tables: dict[str, Any]) -> None:
    OfFeatures(KDSettings(), context())
    with pytest.raises(UserError, match=r"its teachers are taken as they are: set teachers\.adjust to none"):
        OfFeatures(KDSettings.model_validate(tables), context())


def test_the_method_of_that_name_is_joint_kd() -> None:
    recipe = make_recipe({"method": "professor"})
    assert isinstance(recipe.options, KDSettings)
    assert recipe.options.professor is not None
    assert recipe.options.professor.strategy == "joint"
    assert METHODS["professor"].build is KD
    method = KD(recipe.options, context())
    assert method.needs.features
    assert not kd({}).needs.features
