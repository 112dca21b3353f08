"""Where a student errs, and how far its confidence can be trusted: its test beyond a few figures."""

from typing import NamedTuple

import torch
from torch import Tensor

from tfkd_fast.events import ConfidenceBin, Confusion, Mistake, StudentExamined
from tfkd_fast.judging.metrics import top1_by_class
from tfkd_fast.ops.candidate_metrics import ECE_BINS

MOST_CONFUSIONS = 1000
"""The most pairs of classes that are told of: all of them for up to 32 classes."""

MOST_MISTAKES = 24
"""The most images that are named."""


class _Answers(NamedTuple):
    """The answers for N images, float64."""

    prediction: Tensor
    """(N,) int64: the most likely class, of equal ones the first."""
    confidence: Tensor
    """(N,): its probability."""
    right: Tensor
    """(N,) bool: whether the prediction is the label."""


def examine(logits: Tensor, labels: Tensor) -> StudentExamined:
    """Examine a student by its logits (N,C) for images with labels (N,) int64, all of them finite."""
    classes, labels = logits.shape[1], labels.cpu()
    probabilities = logits.cpu().double().softmax(dim=1)
    prediction = logits.cpu().argmax(dim=1)
    confidence = probabilities.gather(1, prediction.unsqueeze(1)).squeeze(1)
    answers = _Answers(prediction, confidence, prediction == labels)
    by_class = 100 * top1_by_class(logits.cpu().unsqueeze(0), labels)[0]
    return StudentExamined(
        class_images=tuple(torch.bincount(labels, minlength=classes).tolist()),
        class_top1=tuple(by_class.tolist()),
        confusions=_confusions(answers, labels, classes),
        bins=_bins(answers),
        mistakes=_mistakes(answers, labels),
    )


def _confusions(answers: _Answers, labels: Tensor, classes: int) -> tuple[Confusion, ...]:
    """The pairs of a label and another class that was predicted for it, the most frequent first."""
    wrong = ~answers.right
    counts = torch.bincount(classes * labels[wrong] + answers.prediction[wrong], minlength=classes**2)
    order = counts.argsort(descending=True, stable=True)[:MOST_CONFUSIONS].tolist()
    return tuple(
        Confusion(label=pair // classes, prediction=pair % classes, images=int(counts[pair]))
        for pair in order
        if counts[pair]
    )


def _bins(answers: _Answers) -> tuple[ConfidenceBin, ...]:
    """The bins of the expected calibration error, see `ops.candidate_metrics`."""
    number = (answers.confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1  # closed on the right
    counts = torch.bincount(number, minlength=ECE_BINS)
    confidence = torch.bincount(number, answers.confidence, minlength=ECE_BINS) / counts
    top1 = torch.bincount(number, answers.right.double(), minlength=ECE_BINS) / counts
    return tuple(
        ConfidenceBin(images=images, confidence=100 * mean, top1=100 * share)
        for images, mean, share in zip(counts.tolist(), confidence.tolist(), top1.tolist(), strict=True)
    )


def _mistakes(answers: _Answers, labels: Tensor) -> tuple[Mistake, ...]:
    """The images that were taken for another class with the greatest confidence."""
    order = answers.confidence.masked_fill(answers.right, -1.0).argsort(descending=True, stable=True)
    count = min(MOST_MISTAKES, int((~answers.right).sum()))
    return tuple(
        Mistake(
            image=image,
            label=int(labels[image]),
            prediction=int(answers.prediction[image]),
            confidence=100 * float(answers.confidence[image]),
        )
        for image in order[:count].tolist()
    )
