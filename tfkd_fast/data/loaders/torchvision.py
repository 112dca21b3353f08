"""The torchvision loader: worker processes transform image by image, for sets that do not fit on the device.

A worker holds one decoded image and two batches of pixels at a time, whatever the size of the set.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from tfkd_fast.data.augmentation import PLAIN, Augmentation, Views
from tfkd_fast.data.images import ImageSet, from_pillow, to_pillow
from tfkd_fast.errors import UserError

View = tuple[int, int, int, bool, int]
"""Index, top, left, mirrored and key: one row of `Views`."""


class TorchvisionPixels:
    """A `PixelSource`: worker processes make batches of pixels, which are then copied to the device."""

    name = "torchvision"

    def __init__(self, images: ImageSet, augmentation: Augmentation, device: torch.device, workers: int) -> None:
        self._dataset = PixelBatches(images, augmentation)
        self._device, self._workers = device, workers

    def pixels(self, batches: list[Views]) -> Iterator[Tensor]:
        """Yield the pixels of each batch, see `PixelSource.pixels`.

        Raises:
            UserError: an image cannot be read.
        """
        loader = DataLoader(
            self._dataset,
            batch_size=None,  # an item of the sampler is a whole batch
            sampler=[list(zip(*(column.tolist() for column in batch), strict=True)) for batch in batches],
            num_workers=self._workers,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # without one a DataLoader draws from the global random state
            worker_init_fn=_end_by_parent,
        )
        with _signals_left_to_the_run():
            started = iter(loader)
        try:
            for pixels in started:
                if isinstance(pixels, UserError):
                    raise pixels
                on_device = pixels.to(self._device, non_blocking=True)
                yield on_device.contiguous(memory_format=torch.channels_last)
        finally:
            del started  # which ends the workers, also where an error that is kept holds this frame


@contextmanager
def _signals_left_to_the_run() -> Iterator[None]:
    """Context manager for a block that starts workers and their threads, which are to get no signal from their first
    moment on; this thread gets those that come meanwhile after the block.

    What is sent to all processes of a job, such as Ctrl-C, ends the run, and that ends its workers. A worker that ended
    by itself would be an error of the run, which may still have an epoch to save.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_by_parent(_: int) -> None:
    """End this worker when its parent sends SIGTERM, and nobody else: so Python ends workers that are left when it
    exits, and waits for them."""
    parent = multiprocessing.parent_process()  # also where a fork server stands between them
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        threading.Thread(target=_wait_for_end, args=(parent.pid,), daemon=True).start()


def _wait_for_end(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class PixelBatches(Dataset[Tensor | UserError]):
    """A torch data set whose items are batches: the index is a list of views."""

    def __init__(self, images: ImageSet, augmentation: Augmentation) -> None:
        self._images, self._pad, self._transforms = images, augmentation.pad, augmentation.transforms

    def __getitem__(self, views: list[View]) -> Tensor | UserError:
        """Return pixels (B,C,H,W) uint8, or the error: raised in a worker, it would arrive wrapped in a traceback."""
        try:
            return torch.stack([self._view(*view) for view in views])
        except UserError as error:
            return error

    def _view(self, index: int, top: int, left: int, mirrored: bool, key: int) -> Tensor:
        size = self._images.image_shape[2]
        transforms = None if key == PLAIN else self._transforms
        if transforms is not None and transforms.area is not None:
            return from_pillow(transforms.apply(self._images.whole(index), key, mirrored=mirrored, size=size))
        padded = functional.pad(self._images.image(index), [self._pad])
        window = functional.crop(padded, top, left, size, size)
        if transforms is not None:
            return from_pillow(transforms.apply(to_pillow(window), key, mirrored=mirrored, size=size))
        return functional.horizontal_flip(window) if mirrored else window
