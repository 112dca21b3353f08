"""How good candidates are, and what would make them better, by held-out images only."""

from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import islice
from typing import Protocol

from torch import Tensor, nn

from tfkd_fast.data import Loader
from tfkd_fast.device import Compute
from tfkd_fast.judging.influence import influence
from tfkd_fast.judging.metrics import Judgement, judge, load_averaged_weights
from tfkd_fast.methods.base import HoldoutMetrics

CALIBRATION_IMAGES = 2000
"""Training images on which the batch norm of averaged weights is re-estimated (our choice)."""


class Averages(Protocol):
    """Averaged weights of every candidate of a population."""

    count: int
    """How many moments were averaged; 0 for none."""

    def mean_weights(self, slot: int) -> dict[str, Tensor]:
        """The averaged weights of one candidate by name."""


class Judge:
    """Judges one candidate after the other; of each it says None where no images are held out."""

    def __init__(self, fit: Loader, holdout: Loader | None, compute: Compute, build: Callable[[], nn.Module]) -> None:
        """`build` makes a network of the candidates' kind."""
        self._fit, self._holdout, self._compute, self._build = fit, holdout, compute, build

    def judgements(self, models: Iterable[nn.Module], labels: tuple[int, ...] | None = None) -> list[Judgement | None]:
        """By the weights as they are; with `labels`, by images of these only."""
        if self._holdout is None:
            return [None for _ in models]
        holdout = self._holdout if labels is None else self._holdout.with_labels(labels)
        return list(judge(models, holdout, self._compute))

    def metrics(self, models: Iterable[nn.Module]) -> list[HoldoutMetrics | None]:
        """The same on all images, without the accuracies of the classes."""
        return [judgement and judgement.metrics for judgement in self.judgements(models)]

    def average_metrics(self, average: Averages, candidates: int, epoch: int) -> list[HoldoutMetrics | None]:
        """By averaged weights: every candidate on the same images, of `epoch`, for the batch norm as for the metrics.

        Nothing was averaged: None.
        """
        if average.count == 0:
            return [None] * candidates
        batches = -(-CALIBRATION_IMAGES // self._fit.batch_size)
        return self.metrics(
            load_averaged_weights(
                self._scratch, average.mean_weights(slot), islice(self._fit.epoch(epoch), batches), self._compute
            )
            for slot in range(candidates)
        )

    def influence(self, model: nn.Module, epoch: int) -> Callable[[], Tensor] | None:
        """How the held-out loss depends on what each label is taught, see `IntervalResult.influence`."""
        holdout = self._holdout
        if holdout is None:
            return None
        return lambda: influence(model, self._scratch, self._fit.epoch(epoch), holdout.in_order())

    @cached_property
    def _scratch(self) -> nn.Module:
        """A network for averaged weights."""
        return self._build()
