"""The judge: metrics of candidates on held-out images, and the influence of targets on their held-out loss."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Event
from typing import Protocol

from torch import Tensor, nn

from tfkd_fast.data import Batch, Loader
from tfkd_fast.device import Compute
from tfkd_fast.judging.influence import influence
from tfkd_fast.judging.metrics import (
    Judgement,
    estimate_batch_norm,
    judge_predictions,
    load_averaged_weights,
    predict,
)
from tfkd_fast.methods.base import HoldoutMetrics
from tfkd_fast.threads import run_at_once, until

CALIBRATION_SHARE = 1 / 40
"""Share of the training images by which the batch norm of averaged weights is re-estimated (our choice)."""

FEWEST_CALIBRATION_IMAGES, MOST_CALIBRATION_IMAGES = 128, 1024
"""The fewest and the most of them, where there are so many (our choice)."""


def calibration_images(images: int, batch_size: int) -> int:
    """The number of training images, of all of `images`, that batch norm is re-estimated on: full batches, or a part of
    one."""
    wanted = round(CALIBRATION_SHARE * images)
    wanted = min(max(wanted, FEWEST_CALIBRATION_IMAGES), MOST_CALIBRATION_IMAGES, images)
    return wanted if wanted < batch_size else min(-(-wanted // batch_size) * batch_size, images)


class Averages(Protocol):
    """The averaged weights of every candidate of a population, and its buffers."""

    count: int
    """Number of moments that were averaged."""

    def mean_weights(self, slot: int) -> dict[str, Tensor]:
        """Return the averaged weights of one candidate, and its buffers, by name."""


class Judge:
    """A judge evaluates candidates; without held-out images every result is None."""

    def __init__(
        self,
        fit: Loader,
        holdout: Loader | None,
        compute: Compute,
        build: Callable[[], nn.Module],
        *,
        at_once: bool = False,
    ) -> None:
        """Judge by held-out images.

        Args:
            fit: the training images, to re-estimate batch norm and for influences.
            holdout: the held-out images; None if there are none.
            compute: device and precision.
            build: builds a network of the candidates' architecture.
            at_once: whether candidates are judged at the same time, on threads that share the cores, as they train; or
                else one after the other.
        """
        self._fit, self._holdout, self._compute, self._build = fit, holdout, compute, build
        self._at_once = at_once
        self._scratches: list[nn.Module] = []

    def judgements(self, models: Sequence[nn.Module], labels: tuple[int, ...] | None = None) -> list[Judgement | None]:
        """Evaluate models as they are on the held-out images, or on those of some `labels` only."""
        return self._judge([partial(_as_it_is, model) for model in models], labels)

    def metrics(self, models: Sequence[nn.Module]) -> list[HoldoutMetrics | None]:
        """Return the metrics of models on all held-out images, without the accuracies of the classes."""
        return [judgement and judgement.metrics for judgement in self.judgements(models)]

    def average_metrics(self, average: Averages, slots: Sequence[int], epoch: int) -> list[HoldoutMetrics | None]:
        """Return the metrics of averaged weights.

        Batch norm is re-estimated on the same training images for every candidate.

        Args:
            average: the averaged weights.
            slots: the candidates.
            epoch: the epoch whose order and augmentation of training images is used.

        Returns:
            One result for each candidate; None if nothing was averaged or nothing is held out.
        """
        if average.count == 0:
            return [None for _ in slots]
        weights = [partial(average.mean_weights, slot) for slot in slots]
        return self._metrics_of_weights(weights, epoch)

    def weights_metrics(self, weights: dict[str, Tensor], epoch: int) -> HoldoutMetrics:
        """Return the metrics of a network of these weights and buffers by name; batch norm is estimated as in
        `average_metrics`.

        Raises:
            ValueError: nothing is held out.
        """
        (metrics,) = self._metrics_of_weights([lambda: weights], epoch)
        if metrics is None:
            raise ValueError("averages of candidates are judged by held-out images, and there are none")
        return metrics

    def estimate_batch_norm(self, model: nn.Module, epoch: int, *, all_images: bool) -> None:
        """Set the statistics of a model's batch norm to those of all training images, in the order and augmentation of
        an epoch, or of as many as averaged weights are judged with."""
        estimate_batch_norm(model, self._some_images(epoch, all_images=all_images), self._compute)

    def _judge(
        self, networks: Sequence["MakeNetwork"], labels: tuple[int, ...] | None = None
    ) -> list[Judgement | None]:
        """Judge networks, each of which is made when its turn comes."""
        if self._holdout is None or not networks:
            return [None for _ in networks]
        holdout = self._holdout if labels is None else self._holdout.with_labels(labels)

        def predicted(make: MakeNetwork, stop: Event | None) -> tuple[Tensor, Tensor]:
            return predict(make(stop), until(stop, holdout.in_order()), self._compute)

        if self._at_once and len(networks) > 1:
            predictions = run_at_once([partial(predicted, make) for make in networks])
        else:
            predictions = [predicted(make, None) for make in networks]
        return list(judge_predictions(predictions))

    def _metrics_of_weights(
        self, weights: Sequence[Callable[[], dict[str, Tensor]]], epoch: int
    ) -> list[HoldoutMetrics | None]:
        networks = [
            partial(self._load, self._scratch(number if self._at_once else 0), own, epoch)
            for number, own in enumerate(weights)
        ]
        return [judgement and judgement.metrics for judgement in self._judge(networks)]

    def _load(
        self, network: nn.Module, weights: Callable[[], dict[str, Tensor]], epoch: int, stop: Event | None
    ) -> nn.Module:
        """Load weights into a network, and estimate its batch norm."""
        images = until(stop, self._some_images(epoch, all_images=False))
        return load_averaged_weights(network, weights(), images, self._compute)

    def _some_images(self, epoch: int, *, all_images: bool) -> Iterable[Batch]:
        order = self._fit.order(epoch)
        count = len(order) if all_images else calibration_images(len(order), self._fit.batch_size)
        return self._fit.visit(order[:count], epoch)

    def _scratch(self, number: int = 0) -> nn.Module:
        """A network whose weights are overwritten, for averaged weights and influences: one of those that are used at
        the same time."""
        while len(self._scratches) <= number:
            self._scratches.append(self._build())
        return self._scratches[number]

    def influence(self, model: nn.Module, epoch: int) -> Callable[[], Tensor] | None:
        """Return a function that computes `influence.influence` for a model, or None if nothing is held out."""
        holdout = self._holdout
        if holdout is None:
            return None
        return lambda: influence(model, self._scratch(), self._fit.epoch(epoch), holdout.in_order())


MakeNetwork = Callable[[Event | None], nn.Module]
"""Makes a network to judge, until the event is set."""


def _as_it_is(model: nn.Module, stop: Event | None) -> nn.Module:
    return model
