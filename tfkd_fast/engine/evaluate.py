"""Metrics of students on a fixed set of images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from tfkd_fast import ops
from tfkd_fast.data import Batch, Loader
from tfkd_fast.engine.device import Compute
from tfkd_fast.methods.protocol import HoldoutMetrics


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


def metrics_of(models: list[nn.Module], loader: Loader, compute: Compute) -> list[HoldoutMetrics]:
    """The metrics of each model on the same images, in order and without augmentation."""
    predictions = [predict(model, loader.in_order(), compute) for model in models]
    table = ops.candidate_metrics(torch.stack([logits for logits, _ in predictions]), predictions[0][1])
    rows = torch.stack([column.double() for column in table], dim=1).tolist()
    return [HoldoutMetrics(**dict(zip(table._fields, row, strict=True))) for row in rows]


def averaged_model(average: AveragedModel, batches: Iterable[Batch], compute: Compute) -> nn.Module:
    """The model with averaged weights, its batch norm re-estimated on training images.

    An average of weights needs statistics of its own: Izmailov et al., "Averaging Weights Leads to Wider Optima", 2018.
    """
    average.train()
    with compute.autocast():
        update_bn((batch.images for batch in batches), average)
    model: nn.Module = average.module
    return model
