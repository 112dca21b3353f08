"""Metrics of students on a fixed set of images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

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


def metrics_of(models: Iterable[nn.Module], loader: Loader, compute: Compute) -> list[HoldoutMetrics]:
    """The metrics of each model on the same images, in order and without augmentation; each is done before the next."""
    predictions = [predict(model, loader.in_order(), compute) for model in models]
    table = ops.candidate_metrics(torch.stack([logits for logits, _ in predictions]), predictions[0][1])
    rows = torch.stack([column.double() for column in table], dim=1).tolist()
    return [HoldoutMetrics(**dict(zip(table._fields, row, strict=True))) for row in rows]


def take_average(model: nn.Module, weights: dict[str, Tensor], batches: Iterable[Batch], compute: Compute) -> nn.Module:
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
