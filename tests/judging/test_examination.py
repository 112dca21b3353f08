"""The examination of a student, against counts in plain Python and the operator of the calibration error."""

import math
from collections import Counter

import pytest
import torch

from tfkd_fast import ops
from tfkd_fast.judging.examination import MOST_MISTAKES, examine

IMAGES, CLASSES = 400, 7


def answers(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES - 1, (IMAGES,), generator=generator)  # none of the last class
    logits = 2 * torch.randn(IMAGES, CLASSES, generator=generator)
    logits[torch.arange(IMAGES), labels] += 2.0
    return logits, labels


def test_classes_and_confusions_are_counted() -> None:
    logits, labels = answers()
    pairs = list(zip(labels.tolist(), logits.argmax(1).tolist(), strict=True))
    found = examine(logits, labels)
    images, right = Counter(labels.tolist()), Counter(label for label, answer in pairs if label == answer)
    assert found.class_images == tuple(images[label] for label in range(CLASSES))
    assert found.class_top1[:-1] == pytest.approx([100 * right[label] / images[label] for label in range(CLASSES - 1)])
    assert math.isnan(found.class_top1[-1])
    counted = {(each.label, each.prediction): each.images for each in found.confusions}
    assert counted == Counter(pair for pair in pairs if pair[0] != pair[1])
    assert [each.images for each in found.confusions] == sorted(counted.values(), reverse=True)


def test_the_bins_are_those_of_the_calibration_error() -> None:
    logits, labels = answers(1)
    bins = examine(logits, labels).bins
    assert sum(each.images for each in bins) == IMAGES
    error = sum(each.images * abs(each.top1 - each.confidence) for each in bins if each.images) / IMAGES
    assert error == pytest.approx(100 * float(ops.candidate_metrics(logits.unsqueeze(0), labels).ece), rel=1e-5)
    assert all(
        100 * number / 15 < each.confidence <= 100 * (number + 1) / 15 + 1e-9
        for number, each in enumerate(bins)
        if each.images
    )


def test_a_confidence_of_one_and_one_on_a_bound_have_a_bin() -> None:
    certain, even = torch.tensor([[200.0, 0.0, 0.0]]), torch.zeros(1, 3)
    for logits, number in ((certain, 14), (even, 4)):  # a third is the upper bound of the fifth bin
        bins = examine(logits, torch.tensor([0])).bins
        assert [each.images for each in bins] == [int(place == number) for place in range(15)]


def test_the_surest_mistakes_come_first() -> None:
    logits, labels = answers(2)
    confidence, prediction = logits.double().softmax(1).max(1)
    wrong = sorted(
        (image for image in range(IMAGES) if prediction[image] != labels[image]), key=lambda i: -confidence[i]
    )
    mistakes = examine(logits, labels).mistakes
    assert [mistake.image for mistake in mistakes] == wrong[:MOST_MISTAKES]
    assert mistakes[0].confidence == pytest.approx(100 * float(confidence[wrong[0]]))
    assert examine(10 * torch.eye(3), torch.arange(3)).mistakes == ()
