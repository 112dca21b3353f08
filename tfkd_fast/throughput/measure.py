"""Throughput in images per second: the engine beside loops written by hand, loaders, and the machine's limit."""

import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from tfkd_fast import ops
from tfkd_fast.data import Loader, LoaderName
from tfkd_fast.device import Compute
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.runs.checkpoint_writer import CheckpointWriter
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.throughput.by_hand import careful_epoch, careful_evaluation, fp32_epoch
from tfkd_fast.throughput.plain_processes import plain_processes
from tfkd_fast.throughput.turns import Measurement, Ratio, measure_interleaved, ratio
from tfkd_fast.throughput.workload import Workload, engine_epoch, engine_evaluation, engine_state
from tfkd_fast.training.groups import SideBySide

ENGINE = "tfkd-fast"
"""Name of the variant that trains by the engine."""

DOUBTFUL_RATIO, SECOND_LOOK = 1.05, 3
"""A sweep measures what is below this ratio once more, with so many times the rounds: among a hundred ratios of few
rounds some are low by chance."""


class Cell(NamedTuple):
    """The training step of one workload beside the careful loop written by hand."""

    workload: Workload
    """The network, method and images."""
    ours: Measurement
    """The measurement of the engine."""
    by_hand: Measurement
    """The measurement of the loop."""

    @property
    def ratio(self) -> Ratio:
        """How many times as fast the engine is."""
        return ratio(self.ours, self.by_hand)


class Saving(NamedTuple):
    """What a checkpoint costs, medians in seconds."""

    wait: float
    """For so long training waits while its state is copied."""
    write: float
    """After so long more it is on disk; training goes on meanwhile."""


def careful_loop(compute: Compute) -> str:
    """The name of the careful loop written by hand."""
    return f"by hand, {compute.precision}, channels-last, batched augmentation"


def measure_training(workload: Workload, rounds: int, *, compiled: bool) -> list[Measurement]:
    """Measure the training step of the engine beside loops written by hand; the first row is the engine's.

    Args:
        workload: network, method and images.
        rounds: number of measurements of each variant.
        compiled: whether to add a loop written by hand that torch compiles.
    """
    name = careful_loop(workload.compute)
    variants = {
        ENGINE: engine_epoch(workload, 1, "sequential"),
        name: careful_epoch(workload),
        "by hand, fp32, DataLoader": fp32_epoch(workload),
    }
    if compiled:
        variants[f"{name}, torch.compile"] = careful_epoch(workload, compiled=True)
    return measure_interleaved(variants, workload.images, rounds)


def measure_evaluation(workload: Workload, rounds: int) -> list[Measurement]:
    """Measure how fast a student is judged by held-out images, beside the forward pass in eval mode by hand."""
    variants = {ENGINE: engine_evaluation(workload), careful_loop(workload.compute): careful_evaluation(workload)}
    return measure_interleaved(variants, workload.images, rounds)


def measure_saving(workload: Workload, rounds: int) -> Saving:
    """Measure what a checkpoint of one student costs, in a temporary folder; training does not go on meanwhile."""
    state, seconds = engine_state(workload), []
    with TemporaryDirectory() as path, closing(CheckpointWriter(RunFolder(Path(path)), lambda: None)) as writer:
        for epoch in range(1 + rounds):  # the first one is not counted
            started = time.perf_counter()
            writer.save(epoch, state())
            copied = time.perf_counter()
            writer.wait()
            seconds.append((copied - started, time.perf_counter() - copied))
    return Saving(*map(statistics.median, zip(*seconds[1:], strict=True)))


def measure_populations(
    workload: Workload, sizes: Sequence[int], ways: Sequence[SideBySide], rounds: int
) -> dict[int, list[Measurement]]:
    """Measure the total throughput of populations by number of candidates.

    There is a row for each way to train them by the engine that the network allows, and on the CPU one for as many
    processes of the careful loop written by hand, with a thread each.
    """
    curve = {}
    for size in sizes:
        torch.compiler.reset()  # each size is compiled again, and torch limits their number
        variants: dict[str, Callable[[], None]] = {}
        for way in ways:
            try:
                variants[way] = engine_epoch(workload, size, way)
            except UserError as error:  # as of a network of others that cannot be stacked
                warnings.warn(Notice(f"candidates are not measured {way}: {error}"), stacklevel=2)
        with ExitStack() as stack:
            if workload.compute.device.type == "cpu" and size > 1:
                processes = stack.enter_context(plain_processes(workload, size))
                variants[f"{careful_loop(workload.compute)}, a process each"] = processes
            curve[size] = measure_interleaved(variants, size * workload.images, rounds)
    return curve


def sweep(workloads: Iterable[Workload], rounds: int) -> Iterator[Cell]:
    """Measure the training step of one workload after the other beside the careful loop written by hand."""
    for workload in workloads:
        variants = {
            ENGINE: engine_epoch(workload, 1, "sequential"),
            careful_loop(workload.compute): careful_epoch(workload),
        }
        cell = Cell(workload, *measure_interleaved(variants, workload.images, rounds))
        if cell.ratio.median < DOUBTFUL_RATIO:
            cell = Cell(workload, *measure_interleaved(variants, workload.images, SECOND_LOOK * rounds))
        yield cell


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
    """Return the floating-point operations of a step for one image, counted by torch.

    They are those of the student's forward and backward pass, and of the teacher's forward pass where there is one.
    Products with the padding of convolutions are counted, too.
    """
    model, teacher = workload.build(), workload.build_teacher()
    images = torch.zeros(2, 3, 32, 32, device=workload.compute.device)
    with ops.using_backend("reference"), FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
        if teacher is not None:
            teacher(images)
    return int(counter.get_total_flops()) // 2


def matrix_rate(compute: Compute, rounds: int = 10, size: int = 4096) -> float:
    """Measure the rate of products of two square matrices in the precision of training, in operations per second."""
    size = size if compute.device.type == "cuda" else size // 2
    a, b = torch.randn(2, size, size, device=compute.device).to(compute.dtype)
    products = 20 if compute.device.type == "cuda" else 4  # so that a GPU does not wait for the host

    def multiply() -> None:
        for _ in range(products):
            torch.mm(a, b)

    rows = measure_interleaved({"products": multiply}, products * 2 * size**3, rounds)
    return rows[0].images_per_second
