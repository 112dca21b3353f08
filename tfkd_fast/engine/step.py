"""One epoch of one candidate: the loop that everything else waits for. No host synchronisation inside it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tfkd_fast.data import Loader
from tfkd_fast.engine.device import Compute
from tfkd_fast.engine.population import Candidate
from tfkd_fast.errors import UserError
from tfkd_fast.methods.protocol import Method, TrainingStatistics


class Diverged(UserError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class EpochRun:
    """What an epoch of one candidate left behind."""

    training: TrainingStatistics
    images: int
    seconds: float


def train_epoch(
    candidate: Candidate,
    slot: int,
    epoch: int,
    *,
    method: Method,
    loader: Loader,
    compute: Compute,
    learning_rate: Callable[[float], float],
    on_batch: Callable[[int], None],
) -> EpochRun:
    """Train `candidate` for the 0-based `epoch`. `learning_rate` takes the position within the run, in epochs.

    `on_batch` is told the number of images of each batch, to show progress.
    """
    model, optimizer = candidate.model.train(), candidate.optimizer
    steps = len(loader)
    losses = torch.empty(steps, device=compute.device)
    totals = torch.zeros(3, dtype=torch.float64, device=compute.device)
    images_seen = 0
    started = time.perf_counter()
    for step, batch in enumerate(loader.epoch(epoch, method.data_stream(slot))):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch + step / steps)
        with compute.autocast():
            logits = model(batch.images)
        loss, statistics = method.loss(logits, batch.labels, slot)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if candidate.epoch_average is not None:
            candidate.epoch_average.update_parameters(model)
        losses[step] = loss.detach()
        totals += torch.stack(statistics)
        images_seen += len(batch.labels)
        on_batch(len(batch.labels))
    training = _training_statistics(losses, totals, images_seen, loader.batch_size)
    seconds = time.perf_counter() - started
    _refuse_divergence(losses, epoch, slot)
    return EpochRun(training, images_seen, seconds)


def _training_statistics(losses: Tensor, totals: Tensor, images: int, batch_size: int) -> TrainingStatistics:
    """Means over the samples; the last batch may be smaller than the others."""
    sizes = torch.full_like(losses, batch_size)
    sizes[-1] = images - batch_size * (len(losses) - 1)
    correct, true_probability, entropy = (totals / images).tolist()
    return TrainingStatistics(float((losses * sizes).sum() / images), correct, true_probability, entropy)


def _refuse_divergence(losses: Tensor, epoch: int, slot: int) -> None:
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        value, step = losses[bad[0]].item(), int(bad[0]) + 1
        raise Diverged(f"the loss became {value} in epoch {epoch + 1}, step {step}, candidate {slot}")
