"""Held-out images in batches without end, for methods that learn from them beside the student."""

from collections.abc import Iterator
from itertools import chain, count

from tfkd_fast.data import Batch, Loader

HOLDOUT_STREAM = 2**30
"""Added to the random stream: held-out images are augmented differently than the images to fit at the same place."""


class HoldoutBatches:
    """Augmented batches of the held-out images, as float32; which they are depends on the epoch and the step in it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._batches: Iterator[Batch] = iter(())

    def start(self, epoch: int) -> None:
        """Called before every 0-based epoch."""
        visits = (self._loader.epoch(epoch, HOLDOUT_STREAM + visit) for visit in count())
        self._batches = chain.from_iterable(visits)

    def __next__(self) -> Batch:
        batch = next(self._batches)
        return batch._replace(images=batch.images.float())
