"""The DALI loader: NVIDIA DALI reads, decodes and augments image files, above all with a GPU that decodes JPEG.

Order, crops and mirroring come from outside as views, so that they are those of every other loader. The pixels of
arrays, and of files of the set's size, are equal to those of the other loaders (except JPEG on a GPU, where the decoder
is another one). A file of another size is resized as by Pillow, with two differences: Pillow rounds twice, which
changes a pixel by one grey level at most, and where the filter reaches beyond the edge of the image, DALI repeats the
last pixel and Pillow leaves it out, which changes the outermost row and column of a reduced image. Files that DALI
cannot read or may show differently, such as those with transparent pixels, are read by Pillow (`FileImages.headers`).

Parts of whole images, changes of colour and erased rectangles are drawn as for the torchvision loader, too, and of a
part of a JPEG file only that part is decoded. DALI changes colours in one order (brightness, contrast, saturation, hue)
and by formulas of its own. The operations of RandAugment and TrivialAugment are DALI's, and so is what is drawn for
them: each epoch has a pipeline with a seed of its own, so that a resumed run shows the same images, but they are not
those of the torchvision loader.
"""

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.auto_aug.rand_augment import rand_augment
from nvidia.dali.auto_aug.trivial_augment import trivial_augment_wide
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from tfkd_fast.data.augmentation import PLAIN, Augmentation, Views
from tfkd_fast.data.images import REMEDY, FileImages, ImageSet
from tfkd_fast.data.members import AnyFile, TarMember, open_file
from tfkd_fast.data.transforms import Box, Drawn, Transforms, resize_part
from tfkd_fast.errors import UserError
from tfkd_fast.files import reading

AHEAD = 2
"""Number of batches that DALI prepares in advance (its default)."""

Input = tuple[Any, ...]
"""The input of a batch, by the names of `_inputs`:

* pixels: images (B,H,W,C) uint8; of files a list of those that DALI is not to read, and of `NO_PIXEL`;
* start: (B,2) int32, first row and column of what is shown, which may be outside of the image;
* mirrored: (B,) int32, whether to mirror;
* extent: (B,2) int32, height and width of the part of a whole image that is shown;
* path: of each file as bytes;
* encoded: the content of each file that DALI is to read, in place of its path, where files are in archives;
* plain: (B,) bool, whether DALI is to read it;
* brightness, contrast, saturation, hue: (B,) float32, changes of colour, hue in degrees;
* corner, sides: (B,2) float32, first row and column of the erased rectangle, and its height and width.
"""

NO_PIXEL = np.zeros((0, 0, 3), np.uint8)

TRANSLATION = 150 / 331
"""Largest translation of RandAugment as a share of the image, as in torchvision."""
WIDE_TRANSLATION = 32
"""Largest translation of TrivialAugment in pixels, from its paper."""


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

    def __init__(
        self, images: ImageSet, augmentation: Augmentation, device: torch.device, *, batch_size: int, workers: int
    ) -> None:
        """Prepare batches of `images`.

        Args:
            images: the set.
            augmentation: the padding of the windows that views show, and what else is changed at random.
            device: device of the batches.
            batch_size: the largest number of images of a batch.
            workers: number of CPU threads; 0 for as many as torch uses.
        """
        _freeze_garbage_in_forks()
        self._images, self._pad, self._transforms = images, augmentation.pad, augmentation.transforms
        self._batch_size, self._threads, self._device = batch_size, workers or torch.get_num_threads(), device
        # a batch is one gather; handed over image by image, a batch of small ones would take twice as long
        self._arrays = None if isinstance(images, FileImages) else images.all_images().permute(0, 2, 3, 1).contiguous()
        self._file_input = None
        if isinstance(images, FileImages):
            self._file_input = "encoded" if isinstance(images.files[0], TarMember) else "path"
        self._idle: dict[Transforms | None, list[DaliPipeline]] = {None: [], self._transforms: []}

    def pixels(self, batches: list[Views]) -> Iterator[Tensor]:
        """Yield the pixels of each batch, see `PixelSource.pixels`.

        Raises:
            UserError: an image file cannot be read.
        """
        first_key = int(batches[0].keys[0]) if batches else PLAIN
        transforms = None if first_key == PLAIN else self._transforms
        try:
            pipeline = self._idle[transforms].pop()
        except IndexError:
            pipeline = self._build(transforms, first_key)
        pipeline.start(self._input(batch, transforms) for batch in batches)
        for number in range(len(batches)):
            try:
                pixels = pipeline.run()
            except RuntimeError as error:
                if not isinstance(self._images, FileImages):
                    raise
                raise self._fault(batches[number : number + AHEAD + 1], error) from None
            yield pixels.permute(0, 3, 1, 2)
        pipeline.finish()
        if transforms is None or transforms.auto_augment == "none":
            self._idle[transforms].append(pipeline)  # not reached by an epoch that is left early: what it prepared goes

    def _input(self, batch: Views, transforms: Transforms | None) -> Input:
        start = torch.stack((batch.top, batch.left), 1).sub_(self._pad).int().numpy()
        columns: dict[str, Any] = {"start": start, "mirrored": batch.mirrored.int().numpy()}
        drawn = self._draw(batch, transforms)
        if parts := [draw.part for draw in drawn if draw.part is not None]:
            boxes = np.array(parts, np.int32)
            columns |= {"start": boxes[:, :2].copy(), "extent": boxes[:, 2:].copy()}
        if isinstance(self._images, FileImages):
            files, plain = self._images.files, self._images.headers.plain[batch.indices]
            chosen = [files[index] for index in batch.indices.tolist()]
            columns |= {"pixels": self._read(batch, ~plain, transforms), "plain": plain.numpy()}
            if self._file_input == "encoded":
                columns["encoded"] = [_content(file, wanted) for file, wanted in zip(chosen, plain, strict=True)]
            else:
                columns["path"] = [np.frombuffer(os.fsencode(str(file)), np.uint8) for file in chosen]
        else:
            assert self._arrays is not None
            columns["pixels"] = self._arrays[batch.indices].numpy()
        if jitters := [draw.jitter for draw in drawn if draw.jitter is not None]:
            factors = np.array([jitter[1:] for jitter in jitters], np.float32).T.copy()
            columns |= dict(zip(COLOURS, (*factors[:3], 360 * factors[3]), strict=True))
        erased = np.array([draw.erased or Box(0, 0, 0, 0) for draw in drawn], np.float32).reshape(-1, 4)
        columns |= {"corner": erased[:, :2].copy(), "sides": erased[:, 2:].copy()}
        return tuple(columns[name] for name in _inputs(transforms, self._file_input))

    def _draw(self, batch: Views, transforms: Transforms | None) -> list[Drawn]:
        """Draw the changes of each image; none without transforms."""
        if transforms is None:
            return []
        size, indices, keys = self._images.image_shape[2], batch.indices, batch.keys.tolist()
        if not isinstance(self._images, FileImages):
            return [transforms.draw(key, size, size, size) for key in keys]
        headers = self._images.headers
        shapes = zip(headers.heights[indices].tolist(), headers.widths[indices].tolist(), strict=True)
        # a file that is not plain is read by Pillow, which knows its shape
        return [
            transforms.draw(key, height or size, width or size, size)
            for key, (height, width) in zip(keys, shapes, strict=True)
        ]

    def _read(self, batch: Views, wanted: Tensor, transforms: Transforms | None) -> list[Any]:
        """Read the images with `wanted` (B,) by Pillow, (H,W,C) uint8, and `NO_PIXEL` for the others."""
        assert isinstance(self._images, FileImages)
        images, pixels = self._images, [NO_PIXEL] * len(wanted)
        size = images.image_shape[2]

        def read(place: int) -> Any:
            index, key = int(batch.indices[place]), int(batch.keys[place])
            if transforms is None or transforms.area is None:
                return images.image(index).permute(1, 2, 0).contiguous().numpy()
            image = images.whole(index)
            part = transforms.draw(key, image.height, image.width, size).part
            assert part is not None
            return np.asarray(resize_part(image, part, size))

        with ThreadPoolExecutor(self._threads) as pool:  # Pillow decodes outside the interpreter lock
            places = wanted.nonzero().flatten().tolist()
            for place, image in zip(places, pool.map(read, places), strict=True):
                pixels[place] = image
        return pixels

    def _build(self, transforms: Transforms | None, seed: int) -> "DaliPipeline":
        return DaliPipeline(
            self._images,
            transforms,
            self._file_input,
            batch_size=self._batch_size,
            threads=self._threads,
            device=self._device,
            seed=seed & 0x7FFFFFFF,
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


def _content(file: AnyFile, wanted: Tensor) -> Any:
    if not wanted:
        return np.zeros(0, np.uint8)
    with reading(str(file), "the image", REMEDY), open_file(file) as content:
        return np.frombuffer(content.read(), np.uint8)


class InputSource:
    """The source of a pipeline's inputs. It holds no reference to the pipeline, so a dropped one is freed at once."""

    inputs: Iterator[Input] = iter(())
    """The inputs of the epoch in progress."""

    def __call__(self) -> Input:
        return next(self.inputs)


class DaliPipeline:
    """A DALI pipeline with the source of its inputs."""

    def __init__(
        self,
        images: ImageSet,
        transforms: Transforms | None,
        file_input: str | None,
        *,
        batch_size: int,
        threads: int,
        device: torch.device,
        seed: int,
    ) -> None:
        on_gpu = device.type == "cuda"
        self._feed = InputSource()
        with warnings.catch_warnings(record=True) as caught:
            self._pipeline = pipeline_def(_show, enable_conditionals=True)(
                self._feed,
                images.image_shape[2],
                transforms,
                file_input,
                share=images.share if isinstance(images, FileImages) else None,
                on_gpu=on_gpu,
                batch_size=batch_size,
                num_threads=threads,
                device_id=torch.empty(0, device=device).get_device() if on_gpu else None,  # `device` may lack an index
                prefetch_queue_depth=AHEAD,
                seed=seed,
            )
            self._pipeline.build()
        for warning in caught:
            if not issubclass(warning.category, DeprecationWarning):  # of DALI's operators that its augmentations use
                warnings.warn(warning.message, stacklevel=2)

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


COLOURS = ("brightness", "contrast", "saturation", "hue")
"""Changes of colour as DALI names them."""


def _inputs(transforms: Transforms | None, file_input: str | None) -> list[str]:
    """Return the names of what a pipeline takes of each batch, see `Input`; `file_input` is that of files, None for
    arrays."""
    names = ["pixels", "start", "mirrored"]
    if transforms is not None and transforms.area is not None:
        names.append("extent")
    if file_input is not None:
        names += [file_input, "plain"]
    if transforms is not None and (transforms.jitter or transforms.hue):
        names += COLOURS
    if transforms is not None and transforms.erasing:
        names += ["corner", "sides"]
    return names


def _show(
    feed: InputSource,
    size: int,
    transforms: Transforms | None,
    file_input: str | None,
    *,
    share: float | None,
    on_gpu: bool,
) -> Any:
    """Return what is shown (H,W,C) uint8 of the images of `feed`; `share` is that of `FileImages`, None for arrays."""
    names = _inputs(transforms, file_input)
    layout = ["HWC", *[""] * (len(names) - 1)]
    outputs = fn.external_source(feed, num_outputs=len(names), layout=layout)
    inputs = {name: outputs[number] for number, name in enumerate(names)}
    images, start = inputs["pixels"].gpu() if on_gpu else inputs["pixels"], inputs["start"]
    device = "mixed" if on_gpu else "cpu"
    if transforms is None or transforms.area is None:
        if share is not None:
            images = _decode_centres(images, inputs, size, share, device)
        images = fn.slice(
            images, start=start, shape=[size, size], axes=[0, 1], out_of_bounds_policy="pad", fill_values=0
        )
    elif share is None:
        images = _resize(fn.slice(images, start=start, shape=inputs["extent"], axes=[0, 1]), size)
    else:
        images = _decode_parts(images, inputs, size, device)
    images = fn.flip(images, horizontal=inputs["mirrored"])
    return images if transforms is None else _change(images, size, transforms, inputs)


def _encoded(inputs: dict[str, Any]) -> Any:
    """Return the content of plain files."""
    return inputs["encoded"] if "encoded" in inputs else fn.io.file.read(inputs["path"])


def _decode_centres(images: Any, inputs: dict[str, Any], size: int, share: float, device: str) -> Any:
    """Decode the centred square of plain files to `size` x `size` RGB pixels, as `images.show_centre` does."""
    if inputs["plain"]:  # of each image: DALI divides the batch
        whole = fn.decoders.image(_encoded(inputs), device=device, output_type=types.RGB)
        shape = fn.cast(whole.shape()[0:2], dtype=types.FLOAT)
        side = share * fn.reductions.min(shape)
        first = (shape - side) / 2.0
        images = _resize(whole, size, roi_start=first, roi_end=first + side)
    return images


def _decode_parts(images: Any, inputs: dict[str, Any], size: int, device: str) -> Any:
    """Decode a part of plain files, and resize it to `size` x `size` RGB pixels."""
    if inputs["plain"]:
        part = fn.decoders.image_slice(
            _encoded(inputs),
            start=inputs["start"],
            shape=inputs["extent"],
            axis_names="HW",
            device=device,
            output_type=types.RGB,
        )
        images = _resize(part, size)
    return images


def _change(images: Any, size: int, transforms: Transforms, inputs: dict[str, Any]) -> Any:
    """Apply random operations, changes of colour and erased rectangles."""
    options: dict[str, Any] = {"shape": (size, size), "fill_value": 0}
    if transforms.auto_augment == "randaugment":
        count, magnitude = transforms.operations, transforms.magnitude
        images = rand_augment(images, n=count, m=magnitude, max_translate_rel=TRANSLATION, **options)
    if transforms.auto_augment == "trivialaugment":
        images = trivial_augment_wide(images, max_translate_rel=WIDE_TRANSLATION / size, **options)
    if "hue" in inputs:
        images = fn.color_twist(images, **{name: inputs[name] for name in COLOURS})
    if "corner" in inputs:
        fill = [float(level) for level in transforms.fill]
        images = fn.erase(images, anchor=inputs["corner"], shape=inputs["sides"], axes=[0, 1], fill_value=fill)
    return images


def _resize(images: Any, size: int, **part: Any) -> Any:
    return fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True, **part)
