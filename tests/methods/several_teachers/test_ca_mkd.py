"""CA-MKD's half on features: its loss against the formula in float64, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tfkd_fast.errors import UserError
from tfkd_fast.methods import METHODS, Context
from tfkd_fast.methods.base import StepBatch, TeacherFacts, TeacherOutputs
from tfkd_fast.methods.several_teachers.ca_mkd import CAMKD
from tfkd_fast.models import Features, FeatureShapes

CLASSES, BATCH = 4, 7
SHAPES = (FeatureShapes(((6, 4, 4),), 6), FeatureShapes(((5, 4, 4),), 5), FeatureShapes(((9, 2, 2),), 9))
"""A student and two teachers, of which the second has smaller maps."""


def build(*, shapes: tuple[FeatureShapes, ...] = SHAPES, classifiers: bool = True, **loss: Any) -> CAMKD:
    student, *teachers = shapes
    generator = torch.Generator().manual_seed(3)
    facts = []
    for number, each in enumerate(teachers):
        classifier = nn.Linear(each.pooled, CLASSES).double().requires_grad_(False)
        classifier.weight.copy_(torch.randn(CLASSES, each.pooled, generator=generator, dtype=torch.float64))
        given = {"classifier": classifier} if classifiers else {}
        facts.append(TeacherFacts(f"t{number}", "vgg8", tuple(range(CLASSES)), each, **given))
    device = torch.device("cpu")
    context = Context(CLASSES, 50, 4, 0, device, lambda epoch: 1.0, shapes=student, teachers=tuple(facts))
    entry = METHODS["ca-mkd"]
    method = entry.build(entry.settings.model_validate({"loss": loss}), context)
    assert isinstance(method, CAMKD)
    return method


def random_step(n: int) -> tuple[Tensor, StepBatch]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(n, BATCH, *shape, generator=generator, dtype=torch.float64)

    def features(shapes: FeatureShapes) -> Features:
        maps = random(*shapes.maps[-1])
        return Features([maps], [maps.relu().requires_grad_()], maps.mean((-2, -1)))

    student, *teachers = (features(shapes) for shapes in SHAPES)
    outputs = tuple(TeacherOutputs(2.0 * random(CLASSES).float(), each) for each in teachers)
    labels = torch.randint(CLASSES, (n, BATCH), generator=generator)
    indices = torch.arange(BATCH).expand(n, -1)
    return random(CLASSES).requires_grad_(), StepBatch(labels, indices, features=student, teachers=outputs)


def normalised(maps: Tensor) -> Tensor:
    centred = maps - maps.mean((0, 2, 3), keepdim=True)
    return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def distance(method: CAMKD, batch: StepBatch) -> Tensor:
    """Mean over the samples of one candidate of sum_m u_m mean((phi_m(F) - F_m)^2)."""
    student, errors, losses = batch.features.after_relu[-1][0], [], []
    for connector, facts, outputs in zip(method.adapters, method.context.teachers, batch.teachers, strict=True):
        teacher = outputs.features.after_relu[-1][0]
        shown = student
        if teacher.shape[-1] < student.shape[-1]:
            shown = student.unflatten(-1, (2, 2)).unflatten(-3, (2, 2)).mean((-3, -1))
        weight, bias = connector.conv[0].weight[:, :, 0, 0], connector.conv[0].bias
        norm = connector.norm[0]
        mapped = normalised(torch.einsum("bshw,ts->bthw", shown, weight) + bias[:, None, None])
        mapped = (mapped * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0.0)
        errors.append(((mapped - teacher) ** 2).mean((1, 2, 3)))
        scores = mapped.mean((2, 3)) @ facts.classifier.weight.T + facts.classifier.bias
        losses.append((scores.exp().sum(1).log() - scores[torch.arange(BATCH), batch.labels[0]]).exp())
    return sum(((1 - loss / sum(losses)) * error).mean() for loss, error in zip(losses, errors, strict=True))


def test_the_loss_is_that_of_the_paper() -> None:
    """Weights of M = 2 teachers are (1 - softmax) / (2 - 1). Gradient flows through the weights, too."""
    method = build(feature_weight=7.0)
    method.adapters.double()
    logits, batch = random_step(1)
    method.begin_interval(1)
    loss = method.loss(logits, batch)
    expected = 7.0 * distance(method, batch)
    torch.testing.assert_close(loss.terms["features"][0], expected, rtol=1e-9, atol=0)
    leaves = [batch.features.after_relu[-1], *method.adapters.parameters()]
    found = torch.autograd.grad(loss.terms["features"].sum(), leaves, retain_graph=True)
    for gradient, wanted in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)
    alone = build(feature_weight=0.0)
    alone.begin_interval(1)
    others = sum(loss.terms[name] for name in ("hard", "soft"))
    torch.testing.assert_close(alone.loss(logits, batch).total, others, rtol=0, atol=0)
    assert not alone.needs.features
    assert alone.adapters is None


def test_several_candidates_have_a_distance_each() -> None:
    method = build()
    method.adapters.double().eval()  # batch norm would see the candidates together
    method.begin_interval(1)
    logits, batch = random_step(2)
    both = method.loss(logits, batch).total
    for number in range(2):
        one = slice(number, number + 1)
        alone = StepBatch(
            batch.labels[one],
            batch.indices[one],
            features=batch.features.map(lambda maps: maps[one]),  # noqa: B023, it is called at once
            teachers=tuple(
                TeacherOutputs(each.logits[one], each.features.map(lambda maps: maps[one]))  # noqa: B023
                for each in batch.teachers
            ),
        )
        torch.testing.assert_close(method.loss(logits[one], alone).total[0], both[number], rtol=1e-9, atol=0)


def test_features_begin_with_the_second_epoch() -> None:
    """As in the authors' code. The phases differ, so that each has a captured step of its own."""
    method = build()
    method.adapters.double()
    logits, batch = random_step(1)
    first = method.begin_interval(0)
    assert method.loss(logits, batch).terms.keys() == {"hard", "soft"}
    second = method.begin_interval(1)
    assert method.loss(logits, batch).terms.keys() == {"hard", "soft", "features"}
    assert first.phase != second.phase


def test_the_default_weight_is_that_of_the_authors_for_three_teachers() -> None:
    """They have 50, and divide the weighted sum by the number of teachers."""
    assert METHODS["ca-mkd"].settings().loss.feature_weight == pytest.approx(50 / 3)


def test_a_teacher_whose_classifier_cannot_read_its_last_maps_is_refused() -> None:
    with pytest.raises(UserError, match=r"by the classifier of each teacher: set loss\.feature_weight to 0"):
        build(classifiers=False)
    odd = (SHAPES[0], SHAPES[1], FeatureShapes(((9, 2, 2),), 12))
    with pytest.raises(UserError, match=r"teacher t1 takes 12 features, and its last maps have 9 channels: set"):
        build(shapes=odd)
    assert build(shapes=odd, feature_weight=0.0).adapters is None


def test_refined_teachers_go_with_logits_alone() -> None:
    settings = METHODS["ca-mkd"].settings
    context = build().context
    for weight, refused in ((0.0, False), (1.0, True)):
        tables = {"teachers": {"adjust": "swap"}, "loss": {"feature_weight": weight}}
        if refused:
            with pytest.raises(UserError, match="learns from more than softened predictions"):
                CAMKD(settings.model_validate(tables), context)
        else:
            CAMKD(settings.model_validate(tables), context)
