"""The algorithms of the convolutions of a run: which convolutions it has, and what was measured on this machine.

What was measured is kept in the user's cache, for each processor, number of threads and batch size, so that later runs
of the same recipe measure nothing, and compute by the same algorithms.
"""

import contextlib
import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

import tfkd_fast
from tfkd_fast.data import Loader
from tfkd_fast.device import Compute, cpu_capabilities
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.files import lock_file, read_record, to_checked_json, user_cache, write_bytes
from tfkd_fast.methods import find_method
from tfkd_fast.methods.base import Needs
from tfkd_fast.models import fixed_weights
from tfkd_fast.ops import conv_algorithms, native
from tfkd_fast.ops.conv_algorithms import Algorithms, Convolution, Pass, Passes
from tfkd_fast.ops.conv_measurement import measure
from tfkd_fast.runs.convolutions import ChosenConvolution, ConvolutionRecord
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.strict_json import to_json
from tfkd_fast.teachers.teacher import Teachers
from tfkd_fast.threads import threads_of_each
from tfkd_fast.training.groups import choose_side_by_side

STEPS_THAT_PAY = 1000
"""Steps of students from which a run measures by itself (our choice): the measurement takes as long as about 20."""


class Measured(NamedTuple):
    """The algorithms of a run, and how long it took to find them."""

    record: ConvolutionRecord
    seconds: float
    """0 where all of it was known before."""


def choose_convolutions(
    recipe: Recipe,
    compute: Compute,
    needs: Needs,
    loader: Loader,
    build: Callable[[], nn.Module],
    teachers: Teachers,
    image_shape: tuple[int, int, int],
) -> Measured:
    """Choose the algorithms of the convolutions of a run, measured for full batches on the threads of one lane.

    Args:
        recipe: the recipe.
        compute: device and precision.
        needs: what the method asks of the engine.
        loader: loads the training images.
        build: builds an untrained student.
        teachers: the teachers.
        image_shape: (C,H,W) of the images.
    """
    steps = len(loader) * find_method(recipe.method).student_epochs(recipe.options, recipe.epochs)
    wanted = recipe.convolutions == "measured" or (recipe.convolutions == "auto" and steps >= STEPS_THAT_PAY)
    if not wanted or compute.device.type != "cpu" or compute.dtype != torch.bfloat16:
        return Measured(ConvolutionRecord(), 0.0)
    batch = loader.batch_sizes()[0] * (2 if needs.companion_gradient else 1)
    apart = choose_side_by_side(recipe.population) == "streams" and not needs.joint_steps
    threads = threads_of_each(needs.candidates if apart else 1)
    return find_measured(record_passes(build(), teachers, compute, image_shape), batch, threads, compute)


def record_passes(student: nn.Module, teachers: Teachers, compute: Compute, shape: tuple[int, int, int]) -> Passes:
    """The convolutions of a student, in training and in evaluation, and of teachers, with the passes they take.

    Args:
        student: is run on two images, which changes its batch norm.
        teachers: the teachers.
        compute: device and precision.
        shape: (C,H,W) of the images.
    """
    images = torch.zeros(2, *shape, device=compute.device, dtype=compute.dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    with conv_algorithms.recording() as passes:
        with compute.autocast():
            student.train()(images)
            with torch.no_grad(), fixed_weights(student.eval()):
                student(images)
        teachers.predict(images.unsqueeze(0))
    return passes


def find_measured(passes: Passes, batch: int, threads: int, compute: Compute) -> Measured:
    """The algorithms of convolutions on so many threads, from the user's cache or else by measurement."""
    machine = _machine(threads, batch, compute)
    started = time.perf_counter()
    with _cache(machine) as path:
        known = {} if path is None else _read(path, machine)
        new = {key: own for key, own in passes.items() if (key, own) not in known}
        if new:
            with _threads(threads):
                found = measure(new, batch)
            known |= {(key, own): found[key] for key, own in new.items()}
            if path is not None:
                _write(path, machine, known)
    record = ConvolutionRecord(
        threads=threads,
        batch=batch,
        convolutions=tuple(ChosenConvolution.make(key, own, known[key, own]) for key, own in passes.items()),
    )
    return Measured(record, time.perf_counter() - started if new else 0.0)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute on so many threads while the context is open."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


# The user's cache: a file for each machine, number of threads and batch size.

Known = dict[tuple[Convolution, frozenset[Pass]], Algorithms]


class _CacheFile(BaseModel):
    model_config = ConfigDict(extra="ignore")

    machine: dict[str, Any]
    convolutions: tuple[ChosenConvolution, ...]


def _machine(threads: int, batch: int, compute: Compute) -> dict[str, Any]:
    """All that a measurement depends on but the convolution."""
    return {
        "processor": compute.device_name,
        "features": sorted(name for name, has in cpu_capabilities().items() if has is True),
        "threads": threads,
        "batch": batch,
        "torch": str(torch.__version__),
        "tfkd-fast": tfkd_fast.__version__,
        "library": _checksum(native.CPP_LIBRARY),
    }


def _checksum(library: Path) -> str | None:
    return hashlib.sha256(library.read_bytes()).hexdigest() if library.exists() else None


@contextmanager
def _cache(machine: dict[str, Any]) -> Iterator[Path | None]:
    """The file of a machine, which no other process measures for meanwhile; None where it cannot be written."""
    digest = hashlib.sha256(to_json(machine).encode()).hexdigest()
    with contextlib.ExitStack() as stack:
        try:
            folder = user_cache() / "convolutions"
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / f"{digest[:16]}.lock").open("ab"))
            lock_file(lock.fileno(), wait=True)
            path = folder / f"{digest[:16]}.json"
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
            _say_unkept(error)
            path = None
        yield path


def _read(path: Path, machine: dict[str, Any]) -> Known:
    """What is known; nothing where there is no file, a damaged one, or one of another machine."""
    try:
        file = read_record(path, "the measurements", "", _CacheFile)
    except UserError:
        return {}
    if file.machine != machine:
        return {}
    return {
        (chosen.convolution, frozenset(chosen.algorithms)): Algorithms(**chosen.algorithms)
        for chosen in file.convolutions
    }


def _write(path: Path, machine: dict[str, Any], known: Known) -> None:
    entries = tuple(ChosenConvolution.make(*key, algorithms) for key, algorithms in known.items())
    content = _CacheFile(machine=machine, convolutions=entries).model_dump(mode="json")
    try:
        write_bytes(path, to_checked_json(content).encode())
    except UserError as error:
        _say_unkept(error)


def _say_unkept(error: Exception) -> None:
    warnings.warn(
        Notice(f"what was measured of convolutions cannot be kept for later runs ({error}): set XDG_CACHE_HOME"),
        stacklevel=3,
    )
