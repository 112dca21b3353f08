"""Metrics of students on a fixed set of images."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tfkd_fast import ops
from tfkd_fast.data import Batch, Loader
from tfkd_fast.device import Compute
from tfkd_fast.methods.base import HoldoutMetrics
from tfkd_fast.models import fixed_weights


class Judgement(NamedTuple):
    """The result of evaluating a model on some images."""

    metrics: HoldoutMetrics
    """Metrics on all images."""
    top1_by_class: tuple[float, ...]
    """C accuracies, fractions; NaN for a class without images."""


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Batch], compute: Compute) -> tuple[Tensor, Tensor]:
    """Evaluate a model on batches, in eval mode; return logits (N,C) float32 and labels (N,) int64."""
    model.eval()
    logits, labels = [], []
    with fixed_weights(model):
        for batch in batches:
            with compute.autocast():
                logits.append(model(batch.images).float())
            labels.append(batch.labels)
    return torch.cat(logits), torch.cat(labels)


def judge_predictions(predictions: Sequence[tuple[Tensor, Tensor]]) -> list[Judgement]:
    """Judge models by what `predict` gave for the same images."""
    return judge_logits(torch.stack([logits for logits, _ in predictions]), predictions[0][1])


def judge_logits(logits: Tensor, labels: Tensor) -> list[Judgement]:
    """Judge models by their logits (K,N,C) float32 for the same images, with labels (N,) int64."""
    table = ops.candidate_metrics(logits, labels)
    rows = torch.stack([column.double() for column in table], dim=1).tolist()
    by_class = top1_by_class(logits, labels).masked_fill(table.top1.isnan().unsqueeze(1), torch.nan).tolist()
    return [
        Judgement(HoldoutMetrics(**dict(zip(table._fields, row, strict=True))), tuple(of_classes))
        for row, of_classes in zip(rows, by_class, strict=True)
    ]


def holdout_metrics(models: Iterable[nn.Module], loader: Loader, compute: Compute) -> list[HoldoutMetrics]:
    """Return the metrics of models on the images of a loader, in order and without augmentation."""
    judgements = judge_predictions([predict(model, loader.in_order(), compute) for model in models])
    return [judgement.metrics for judgement in judgements]


def top1_by_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return accuracies (K,C) float64 by class from finite logits (K,N,C) and labels (N,); NaN for an empty class."""
    candidates, _, classes = logits.shape
    row = torch.arange(candidates, device=labels.device).unsqueeze(1)
    cell = 2 * (classes * row + labels) + (logits.argmax(-1) == labels)  # of candidate, class, and wrong or right
    counts = torch.bincount(cell.flatten(), minlength=2 * candidates * classes).view(candidates, classes, 2).double()
    return counts[..., 1] / counts.sum(-1)


def load_averaged_weights(
    model: nn.Module, weights: dict[str, Tensor], batches: Iterable[Batch], compute: Compute
) -> nn.Module:
    """Load averaged weights and buffers into a model, re-estimate its batch norm on training batches, and return it.

    Averaged weights need batch statistics of their own: Izmailov et al., "Averaging Weights Leads to Wider Optima",
    2018.

    Args:
        model: overwritten and returned.
        weights: averaged weights, and buffers, by name; the model keeps its own where there are none.
        batches: training batches for the statistics.
        compute: device and precision.
    """
    with torch.no_grad():
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            if name in weights:
                tensor.copy_(weights[name])
    estimate_batch_norm(model, batches, compute)
    return model


@torch.no_grad()
def estimate_batch_norm(model: nn.Module, batches: Iterable[Batch], compute: Compute) -> None:
    """Set the statistics of a model's batch norm to those of training batches, see `load_averaged_weights`.

    Layers whose statistics training does not move keep them: those with momentum 0, and those that stay in evaluation
    mode when the model is set to training, as in fine-tuning with frozen batch norm.
    """
    model.train()
    norms = [norm for norm in model.modules() if isinstance(norm, _BatchNorm) and norm.training and norm.momentum != 0]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then takes the mean over the batches
    for batch in batches:
        with compute.autocast():
            model(batch.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
