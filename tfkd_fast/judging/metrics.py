"""Metrics of students on a fixed set of images."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from tfkd_fast import ops
from tfkd_fast.data import Batch, Loader
from tfkd_fast.device import Compute
from tfkd_fast.methods.base import HoldoutMetrics


class Judgement(NamedTuple):
    """What a model makes of some images."""

    metrics: HoldoutMetrics
    top1_by_class: tuple[float, ...]
    """NaN for a class that none of the images show."""


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Batch], compute: Compute) -> tuple[Tensor, Tensor]:
    """Logits (N,C) float32 in evaluation mode, and labels (N,)."""
    model.eval()
    logits, labels = [], []
    for batch in batches:
        with compute.autocast():
            logits.append(model(batch.images).float())
        labels.append(batch.labels)
    return torch.cat(logits), torch.cat(labels)


def judge(models: Iterable[nn.Module], loader: Loader, compute: Compute) -> list[Judgement]:
    """Each model on the same images, in order and without augmentation; each is done before the next."""
    predictions = [predict(model, loader.in_order(), compute) for model in models]
    logits, labels = torch.stack([logits for logits, _ in predictions]), predictions[0][1]
    table = ops.candidate_metrics(logits, labels)
    rows = torch.stack([column.double() for column in table], dim=1).tolist()
    by_class = top1_by_class(logits, labels).masked_fill(table.top1.isnan().unsqueeze(1), torch.nan).tolist()
    return [
        Judgement(HoldoutMetrics(**dict(zip(table._fields, row, strict=True))), tuple(of_classes))
        for row, of_classes in zip(rows, by_class, strict=True)
    ]


def holdout_metrics(models: Iterable[nn.Module], loader: Loader, compute: Compute) -> list[HoldoutMetrics]:
    """The metrics alone, see `judge`."""
    return [judgement.metrics for judgement in judge(models, loader, compute)]


def top1_by_class(logits: Tensor, labels: Tensor) -> Tensor:
    """(K,C) float64 of logits (K,N,C) for labels (N,), all finite; NaN for a class without a label."""
    candidates, _, classes = logits.shape
    row = torch.arange(candidates, device=labels.device).unsqueeze(1)
    cell = 2 * (classes * row + labels) + (logits.argmax(-1) == labels)  # of candidate, class, and wrong or right
    counts = torch.bincount(cell.flatten(), minlength=2 * candidates * classes).view(candidates, classes, 2).double()
    return counts[..., 1] / counts.sum(-1)


def load_averaged_weights(
    model: nn.Module, weights: dict[str, Tensor], batches: Iterable[Batch], compute: Compute
) -> nn.Module:
    """Fill a model with averaged weights, and re-estimate its batch norm on training images; returns the model.

    An average of weights needs statistics of its own: Izmailov et al., "Averaging Weights Leads to Wider Optima", 2018.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    model.train()
    with compute.autocast():
        update_bn((batch.images for batch in batches), model)
    return model
