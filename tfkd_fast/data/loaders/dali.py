"""NVIDIA DALI reads, decodes and augments: for sets of image files, above all with a GPU that decodes JPEG.

Our own views drive it from outside, so that order and augmentation are those of every other loader. What it gives for
arrays, and for files that have the set's size, is equal pixel for pixel (on a GPU: but for JPEG, which another decoder
reads). A file of another size is resized like Pillow does, with two differences: Pillow rounds twice, which is one grey
level at most, and where the filter reaches over the edge of the image, DALI repeats the last pixel and Pillow leaves
it out: the outermost row and column of a reduced image. 16-bit files are scaled to 8 bits, where Pillow clips them.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from tfkd_fast.data.augmentation import Views
from tfkd_fast.data.images import FileImages, ImageSet
from tfkd_fast.errors import UserError

AHEAD = 2
"""Batches that DALI prepares in advance (its default)."""

Input = tuple[Any, np.ndarray, np.ndarray]
"""Of a batch: images (B,H,W,C) uint8 or a list of paths as bytes, windows' first row and column (B,2) int32, which may
be outside of the image, and whether to mirror (B,) int32."""


# A forked process, such as a worker of the torchvision loader, has none of a pipeline's threads: were its garbage
# collector to destroy a pipeline, it would wait for them forever.
os.register_at_fork(after_in_child=gc.freeze)


class DaliPixels:
    """Feeds pipelines that are kept from epoch to epoch; each epoch in progress has one of its own."""

    name = "dali"

    def __init__(self, images: ImageSet, pad: int, device: torch.device, *, batch_size: int, workers: int) -> None:
        """`workers` is the number of threads on the CPU; 0 stands for as many as torch uses."""
        self._images, self._pad, self._device = images, pad, device
        self._batch_size, self._threads = batch_size, workers or torch.get_num_threads()
        # a batch is one gather; handed over image by image, a batch of small ones would take twice as long
        self._arrays = None if isinstance(images, FileImages) else images.all_images().permute(0, 2, 3, 1).contiguous()
        self._idle: list[DaliPipeline] = []

    def pixels(self, batches: list[Views]) -> Iterator[Tensor]:
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
        corner = torch.stack((batch.top, batch.left), 1).sub_(self._pad)
        return self._data(batch.indices), corner.int().numpy(), batch.mirrored.int().numpy()

    def _data(self, indices: Tensor) -> Any:
        if isinstance(self._images, FileImages):
            files = self._images.files
            return [np.frombuffer(os.fsencode(files[index]), np.uint8) for index in indices.tolist()]
        assert self._arrays is not None
        return self._arrays[indices].numpy()

    def _build(self) -> "DaliPipeline":
        return DaliPipeline(
            self._images.image_shape[1],
            from_files=isinstance(self._images, FileImages),
            batch_size=self._batch_size,
            threads=self._threads,
            device=self._device,
        )

    def _fault(self, batches: list[Views], error: RuntimeError) -> UserError:
        """DALI names no file: find it in the batches that were being prepared."""
        for index in torch.cat([batch.indices for batch in batches]).tolist():
            try:
                self._images.image(index)
            except UserError as found:
                return found
        reason = str(error).partition("encountered:")[2].strip().partition("\n")[0] or str(error).partition("\n")[0]
        return UserError(f"DALI cannot read an image that Pillow can ({reason}): use --loader torchvision")


class InputSource:
    """What a pipeline draws from. It does not know the pipeline, so that one that is dropped is freed at once."""

    inputs: Iterator[Input] = iter(())

    def __call__(self) -> Input:
        return next(self.inputs)


class DaliPipeline:
    """A pipeline and the inputs that it draws from."""

    def __init__(self, size: int, *, from_files: bool, batch_size: int, threads: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        device_id = torch.empty(0, device=device).get_device() if on_gpu else None  # `device` may lack an index
        self._feed = InputSource()
        self._pipeline = Pipeline(batch_size, threads, device_id, prefetch_queue_depth=AHEAD)
        with self._pipeline:
            layout = ["" if from_files else "HWC", "", ""]
            data, corner, mirrored = fn.external_source(self._feed, num_outputs=3, layout=layout)
            if from_files:
                images = _decoded(data, size, "mixed" if on_gpu else "cpu")
            else:
                images = data.gpu() if on_gpu else data
            window = fn.slice(
                images, start=corner, shape=[size, size], axes=[0, 1], out_of_bounds_policy="pad", fill_values=0
            )
            self._pipeline.set_outputs(fn.flip(window, horizontal=mirrored))
        self._pipeline.build()

    def start(self, inputs: Iterator[Input]) -> None:
        self._feed.inputs = inputs

    def run(self) -> Tensor:
        """The next batch (B,H,W,C) uint8, in memory of its own: DALI's dynamic executor gives no buffer out twice."""
        (output,) = self._pipeline.run()
        pixels: Tensor = from_dlpack(output.as_tensor())
        if pixels.is_cuda:  # DALI takes the memory back when the host lets go of it, which may be before it was read
            pixels = pixels.clone()
            torch.cuda.current_stream(pixels.device).synchronize()
        return pixels

    def finish(self) -> None:
        """Let the pipeline see the end of its inputs, and make it ready for others."""
        with contextlib.suppress(StopIteration):
            self._pipeline.run()
        self._pipeline.reset()


def _decoded(paths: Any, size: int, device: str) -> Any:
    """The largest centred square of each file, `size` x `size` pixels, as RGB and upright."""
    images = fn.decoders.image(fn.io.file.read(paths), device=device, output_type=types.RGB)
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
