"""What held-out images say of students: against the logits of one image after the other, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.runs import CPU, few_images, recipe
from tfkd_fast.judging.judge import Judge
from tfkd_fast.judging.metrics import judge, top1_by_class
from tfkd_fast.training.assemble import build_student, load_images


@pytest.mark.parametrize("chosen", [None, (3, 8), (0, 1, 4, 9)])
def test_students_are_judged_by_the_images_of_some_classes(chosen: tuple[int, ...] | None) -> None:
    settings, digits = recipe("ce"), few_images()
    images = load_images(settings, digits, CPU)
    models = [build_student(settings, digits, CPU, seed) for seed in (0, 1)]
    judgements = Judge(images.fit, images.holdout, CPU, lambda: models[0]).judgements(models, chosen)
    known = range(10) if chosen is None else chosen
    assert images.holdout is not None
    for model, judgement in zip(models, judgements, strict=True):
        right: dict[int, list[bool]] = {label: [] for label in range(10)}
        losses: list[float] = []
        for batch in images.holdout.in_order():
            for logits, label in zip(model.eval()(batch.images).detach().double(), batch.labels.tolist(), strict=True):
                if label in known:
                    right[label].append(int(logits.argmax()) == label)
                    losses.append(-float(F.log_softmax(logits, -1)[label]))
        assert judgement is not None
        everything = [value for values in right.values() for value in values]
        assert judgement.metrics.top1 == pytest.approx(sum(everything) / len(everything), rel=1e-6)
        assert judgement.metrics.nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        expected = [sum(values) / len(values) if values else math.nan for values in right.values()]
        assert judgement.top1_by_class == pytest.approx(expected, nan_ok=True)
        assert sum(map(math.isnan, judgement.top1_by_class)) == 10 - len(known)


def test_accuracies_of_classes_go_by_the_largest_logit_the_first_of_equal_ones() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2])
    first = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
    found = top1_by_class(torch.stack([first, -first]), labels).tolist()
    assert found[0] == pytest.approx([2 / 3, math.nan, 0.5, math.nan], nan_ok=True)
    assert found[1] == pytest.approx([1 / 3, math.nan, 0.0, math.nan], nan_ok=True)


def test_a_student_whose_logits_are_not_finite_has_no_accuracies() -> None:
    images = load_images(recipe("ce"), few_images(), CPU)

    class Broken(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 10), math.nan)

    assert images.holdout is not None
    (judgement,) = judge([Broken()], images.holdout, CPU)
    assert math.isnan(judgement.metrics.top1)
    assert all(map(math.isnan, judgement.top1_by_class))
