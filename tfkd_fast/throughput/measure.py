"""Throughput of whole training steps in images per second, including augmentation and update.

Variants are measured in turns, and each turn starts with another variant, so that a slow phase of the machine affects
all of them; the result is the median. One uncounted epoch of each comes first: it compiles, captures and fills caches.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tfkd_fast import ops
from tfkd_fast.data import Dataset, DataSettings, Loader, LoaderName, make_loader
from tfkd_fast.data.images import ArrayImages
from tfkd_fast.device import Compute, determinism
from tfkd_fast.methods import find_method
from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.throughput import plain_loop
from tfkd_fast.training.assemble import assemble
from tfkd_fast.training.groups import SideBySide

CLASSES = 100
"""Number of classes of the random images."""

ENGINE = "tfkd-fast"
"""Name of the variant that trains by the engine."""


class Measurement(NamedTuple):
    """The throughput of one variant."""

    variant: str
    """Name of the variant."""
    images_per_second: float
    """Median throughput over the rounds."""
    spread: float
    """Half the interquartile range of the seconds over their median."""
    seconds: list[float]
    """Duration of each round, seconds."""


@dataclass(frozen=True)
class Workload:
    """A network and random images of CIFAR's shape to train it on, which cost as much as real ones."""

    compute: Compute
    """Device and precision."""
    model: ModelSettings
    """The `[model]` table of a recipe."""
    batch_size: int
    """Number of images of a batch."""
    steps: int
    """Number of training steps of an epoch; one measurement is one epoch."""

    @property
    def images(self) -> int:
        """Number of images of an epoch."""
        return self.steps * self.batch_size

    def build(self) -> nn.Module:
        """Build the network, initialised from seed 0."""
        return self.compute.place(build_model(self.model, CLASSES, 3, seed=0))

    def image_set(self) -> ArrayImages:
        """Return the random images (3,32,32) with labels of `CLASSES` classes."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (self.images, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return ArrayImages(pixels, torch.randint(CLASSES, (self.images,), generator=generator))

    def dataset(self) -> Dataset:
        """The random images as a data set."""
        images = self.image_set()
        return Dataset(
            "random images",
            list(map(str, range(CLASSES))),
            images.image_shape,
            flip=True,
            read_train=lambda: images,
            read_test=lambda: images,
        )

    def loader(self, name: LoaderName = "resident") -> Loader:
        """Build a loader of the random images, with augmentation."""
        dataset, settings = self.dataset(), DataSettings(batch_size=self.batch_size, loader=name)
        return make_loader(dataset.read_train(), dataset, settings, self.compute.device, self.compute.dtype, seed=0)


def measure_training(workload: Workload, rounds: int, *, compiled: bool) -> list[Measurement]:
    """Measure the engine under cross-entropy beside loops written by hand.

    Args:
        workload: network and images.
        rounds: number of measurements of each variant.
        compiled: whether to add a loop written by hand that torch compiles.
    """
    careful = f"by hand, {workload.compute.precision}, channels-last, batched augmentation"
    variants = {
        ENGINE: engine_epoch(workload, 1, "sequential"),
        "by hand, fp32, DataLoader": _dataloader_epoch(workload),
        careful: _whole_batches_epoch(workload),
    }
    if compiled:
        variants[f"{careful}, torch.compile"] = _whole_batches_epoch(workload, compiled=True)
    return measure_interleaved(variants, workload.images, rounds)


def measure_populations(
    workload: Workload, sizes: Sequence[int], ways: Sequence[SideBySide], rounds: int
) -> dict[int, list[Measurement]]:
    """Measure the total throughput of populations by number of candidates, one row for each way to train them."""
    curve = {}
    for size in sizes:
        torch.compiler.reset()  # each size is compiled again, and torch limits their number
        variants: dict[str, Callable[[], None]] = {way: engine_epoch(workload, size, way) for way in ways}
        curve[size] = measure_interleaved(variants, size * workload.images, rounds)
    return curve


def measure_loaders(workload: Workload, names: Sequence[LoaderName], rounds: int) -> list[Measurement]:
    """Measure loaders without training: augmented batches on the device."""

    def epoch_of(loader: Loader) -> Callable[[], None]:
        def run() -> None:
            for _ in loader.epoch(0):
                pass

        return run

    variants = {f"loader {name} alone": epoch_of(workload.loader(name)) for name in names}
    return measure_interleaved(variants, workload.images, rounds)


def flops_per_image(workload: Workload) -> int:
    """Return the floating-point operations of forward and backward pass for one image, counted by torch.

    Products with the padding of convolutions are counted, too.
    """
    model, images = workload.build(), torch.zeros(2, 3, 32, 32, device=workload.compute.device)
    with ops.using_backend("reference"), FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return int(counter.get_total_flops()) // 2


def matrix_rate(compute: Compute, rounds: int = 10, size: int = 4096) -> float:
    """Measure the rate of products of two square matrices in the precision of training, in operations per second."""
    size = size if compute.device.type == "cuda" else size // 2
    a, b = torch.randn(2, size, size, device=compute.device).to(compute.dtype)
    products = 20  # so that a GPU does not wait for the host

    def multiply() -> None:
        for _ in range(products):
            torch.mm(a, b)

    rows = measure_interleaved({"products": multiply}, products * 2 * size**3, rounds)
    return rows[0].images_per_second


def engine_epoch(workload: Workload, candidates: int, way: SideBySide) -> Callable[[], None]:
    """Return a function that trains one epoch by the engine under cross-entropy, as `tfkd-fast train` does.

    Every candidate has its own order and augmentation of the data.
    """
    options = {"selection": {"budget": "full", "candidates": candidates}} if candidates > 1 else {}
    data = {"batch_size": workload.batch_size, "loader": "resident", "holdout": 0.0}
    table: dict[str, Any] = {"method": "ce", "epochs": 1, "population": way, "data": data, **options}
    recipe = make_recipe(table, {"model": workload.model.model_dump()})
    entry = find_method(recipe.method)
    parts = assemble(recipe, workload.dataset(), workload.compute, partial(entry.build, recipe.options))
    plan, rates = parts.method.begin_interval(0), [0.01] * workload.steps

    def run() -> None:
        parts.epochs.run(plan, 0, rates, average=False)

    return run


def measure_interleaved(variants: Mapping[str, Callable[[], object]], work: int, rounds: int) -> list[Measurement]:
    """Measure variants in turns and return one row for each, in their order.

    Args:
        variants: functions by name; one call is one measurement.
        work: number of images, or of other units, of one call.
        rounds: number of measurements of each variant.
    """

    def timed(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with determinism(False):  # as a run has it: libraries may look for the fastest kernel
        for run in variants.values():
            timed(run)
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(timed(variants[name]))
    return [_row(name, work, values) for name, values in seconds.items()]


def _row(name: str, work: int, seconds: list[float]) -> Measurement:
    low, median, high = statistics.quantiles(seconds, n=4)
    return Measurement(name, work / median, (high - low) / 2 / median, seconds)


def _dataloader_epoch(workload: Workload) -> Callable[[], None]:
    """Return an epoch of the common loop: float32, torch's default memory format, a DataLoader over PIL images."""
    return _plain_epoch(workload, plain_loop.dataloader, bf16=False, memory_format=torch.contiguous_format)


def _whole_batches_epoch(workload: Workload, *, compiled: bool = False) -> Callable[[], None]:
    """Return an epoch of a tuned loop: precision of the workload, channels-last, batches augmented by indexing."""
    return _plain_epoch(
        workload,
        plain_loop.whole_batches,
        bf16=workload.compute.dtype is torch.bfloat16,
        memory_format=torch.channels_last,
        compiled=compiled,
    )


def _plain_epoch(
    workload: Workload,
    batches_of: Callable[..., Callable[[], plain_loop.Batches]],
    *,
    bf16: bool,
    memory_format: torch.memory_format,
    compiled: bool = False,
) -> Callable[[], None]:
    images, device = workload.image_set(), workload.compute.device
    pixels, labels = images.all_images().to(device), images.labels.to(device)
    batches = batches_of(pixels, labels, workload.batch_size, device)
    model = workload.build().to(memory_format=memory_format).train()
    optimizer = plain_loop.make_sgd(model)
    network = torch.compile(model) if compiled else model

    def run() -> None:
        with ops.using_backend("reference"):  # the network's plain modules
            plain_loop.train_epoch(network, optimizer, batches(), bf16=bf16, memory_format=memory_format)

    return run
