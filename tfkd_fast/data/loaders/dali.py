"""The DALI loader: NVIDIA DALI reads, decodes and augments image files, above all with a GPU that decodes JPEG.

Order and augmentation come from outside as views, so that they are those of every other loader. The pixels of arrays,
and of files of the set's size, are equal to those of the other loaders (except JPEG on a GPU, where the decoder is
another one). A file of another size is resized as by Pillow, with two differences: Pillow rounds twice, which changes a
pixel by one grey level at most, and where the filter reaches beyond the edge of the image, DALI repeats the last pixel
and Pillow leaves it out, which changes the outermost row and column of a reduced image. Files that DALI cannot read or
may show differently, such as those with transparent pixels, are read by Pillow (`FileImages.plain`).
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from tfkd_fast.data.augmentation import Views
from tfkd_fast.data.images import FileImages, ImageSet
from tfkd_fast.errors import UserError

AHEAD = 2
"""Number of batches that DALI prepares in advance (its default)."""

Input = tuple[Any, ...]
"""The input of a batch: images (B,H,W,C) uint8, the windows' first row and column (B,2) int32, which may be outside of
the image, and whether to mirror (B,) int32. Of files also the paths as bytes, and whether DALI is to read each of them
(B,) bool; the images are then a list of those that it is not to read, and of `NO_PIXEL`."""

NO_PIXEL = np.zeros((0, 0, 3), np.uint8)


@cache
def _freeze_garbage_in_forks() -> None:
    """Exclude present objects from garbage collection in forked processes; registered once, by the first pipeline.

    A forked process, such as a worker of the torchvision loader, has none of a pipeline's threads: if its garbage
    collector destroyed a pipeline, it would wait for them forever.
    """
    os.register_at_fork(after_in_child=gc.freeze)


class DaliPixels:
    """A `PixelSource` with DALI pipelines that are kept between epochs; each epoch in progress has its own pipeline."""

    name = "dali"

    def __init__(self, images: ImageSet, pad: int, device: torch.device, *, batch_size: int, workers: int) -> None:
        """Prepare batches of `images` with `pad` pixels on each side.

        Args:
            images: the set.
            pad: pixels on each side of an image that a window may reach beyond it.
            device: device of the batches.
            batch_size: the largest number of images of a batch.
            workers: number of CPU threads; 0 for as many as torch uses.
        """
        _freeze_garbage_in_forks()
        self._images, self._pad, self._device = images, pad, device
        self._batch_size, self._threads = batch_size, workers or torch.get_num_threads()
        # a batch is one gather; handed over image by image, a batch of small ones would take twice as long
        self._arrays = None if isinstance(images, FileImages) else images.all_images().permute(0, 2, 3, 1).contiguous()
        self._idle: list[DaliPipeline] = []

    def pixels(self, batches: list[Views]) -> Iterator[Tensor]:
        """Yield the pixels of each batch, see `PixelSource.pixels`.

        Raises:
            UserError: an image file cannot be read.
        """
        try:
            pipeline = self._idle.pop()
        except IndexError:
            pipeline = self._build()
        pipeline.start(map(self._input, batches))
        for number in range(len(batches)):
            try:
                pixels = pipeline.run()
            except RuntimeError as error:
                if not isinstance(self._images, FileImages):
                    raise
                raise self._fault(batches[number : number + AHEAD + 1], error) from None
            yield pixels.permute(0, 3, 1, 2)
        pipeline.finish()
        self._idle.append(pipeline)  # not reached by an epoch that is left early: what it prepared goes with it

    def _input(self, batch: Views) -> Input:
        corner = torch.stack((batch.top, batch.left), 1).sub_(self._pad).int().numpy()
        mirrored = batch.mirrored.int().numpy()
        if not isinstance(self._images, FileImages):
            assert self._arrays is not None
            return self._arrays[batch.indices].numpy(), corner, mirrored
        images, plain = self._images, self._images.plain[batch.indices]
        pixels = [NO_PIXEL] * len(plain)
        with ThreadPoolExecutor(self._threads) as pool:  # Pillow decodes outside the interpreter lock
            places = plain.logical_not().nonzero().flatten()
            decoded = pool.map(images.image, batch.indices[places].tolist())
            for place, image in zip(places.tolist(), decoded, strict=True):
                pixels[place] = image.permute(1, 2, 0).contiguous().numpy()
        paths = [np.frombuffer(os.fsencode(images.files[index]), np.uint8) for index in batch.indices.tolist()]
        return pixels, corner, mirrored, paths, plain.numpy()

    def _build(self) -> "DaliPipeline":
        return DaliPipeline(
            self._images.image_shape[1],
            from_files=isinstance(self._images, FileImages),
            batch_size=self._batch_size,
            threads=self._threads,
            device=self._device,
        )

    def _fault(self, batches: list[Views], error: RuntimeError) -> UserError:
        """Return the error with the name of the file, which DALI does not give: it is in the batches in preparation."""
        for index in torch.cat([batch.indices for batch in batches]).tolist():
            try:
                self._images.image(index)
            except UserError as found:
                return found
        reason = str(error).partition("encountered:")[2].strip().partition("\n")[0] or str(error).partition("\n")[0]
        return UserError(f"DALI cannot read an image that Pillow can ({reason}): use --loader torchvision")


class InputSource:
    """The source of a pipeline's inputs. It holds no reference to the pipeline, so a dropped one is freed at once."""

    inputs: Iterator[Input] = iter(())
    """The inputs of the epoch in progress."""

    def __call__(self) -> Input:
        return next(self.inputs)


class DaliPipeline:
    """A DALI pipeline with the source of its inputs."""

    def __init__(self, size: int, *, from_files: bool, batch_size: int, threads: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._feed = InputSource()
        self._pipeline = pipeline_def(_windows, enable_conditionals=True)(
            self._feed,
            size,
            from_files=from_files,
            on_gpu=on_gpu,
            batch_size=batch_size,
            num_threads=threads,
            device_id=torch.empty(0, device=device).get_device() if on_gpu else None,  # `device` may lack an index
            prefetch_queue_depth=AHEAD,
        )
        self._pipeline.build()

    def start(self, inputs: Iterator[Input]) -> None:
        """Begin an epoch with these inputs."""
        self._feed.inputs = inputs

    def run(self) -> Tensor:
        """Return the next batch (B,H,W,C) uint8 in its own memory: DALI's dynamic executor never reuses a buffer."""
        (output,) = self._pipeline.run()
        pixels: Tensor = from_dlpack(output.as_tensor())
        if pixels.is_cuda:  # DALI takes the memory back when the host lets go of it, which may be before it was read
            pixels = pixels.clone()
            torch.cuda.current_stream(pixels.device).synchronize()
        return pixels

    def finish(self) -> None:
        """Run the pipeline to the end of its inputs and reset it for another epoch."""
        with contextlib.suppress(StopIteration):
            self._pipeline.run()
        self._pipeline.reset()


def _windows(feed: InputSource, size: int, *, from_files: bool, on_gpu: bool) -> Any:
    """Return the windows (H,W,C) uint8 of the images of `feed`."""
    layout = ["HWC", *[""] * (4 if from_files else 2)]
    pixels, corner, mirrored, *file = fn.external_source(feed, num_outputs=len(layout), layout=layout)
    images = pixels.gpu() if on_gpu else pixels
    if from_files:
        path, plain = file
        if plain:  # of each image: DALI divides the batch
            images = _decode(path, size, "mixed" if on_gpu else "cpu")
    window = fn.slice(images, start=corner, shape=[size, size], axes=[0, 1], out_of_bounds_policy="pad", fill_values=0)
    return fn.flip(window, horizontal=mirrored)


def _decode(path: Any, size: int, device: str) -> Any:
    """Decode the largest centred square of a file to `size` x `size` RGB pixels, upright."""
    images = fn.decoders.image(fn.io.file.read(path), device=device, output_type=types.RGB)
    shape = fn.cast(images.shape()[0:2], dtype=types.FLOAT)
    side = fn.reductions.min(shape)
    first = (shape - side) / 2.0
    return fn.resize(
        images,
        size=[size, size],
        roi_start=first,
        roi_end=first + side,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
