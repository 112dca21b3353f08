"""Compiles what the kernels' host functions launch, for two architectures, without a GPU; a line of JSON a compilation.

Usage: python -m tests.kernels.compile FAMILY... Each launch is compiled for one of `ARCHITECTURES`, in turn: for both
together it would take twice as long, and they differ in a few registers. Triton gets a driver that has nothing but an
architecture, and a launch ends when its kernel is compiled. So signatures, options and tiles are those of real
launches. Only a tile that is smaller where a device has room for many programs is as on a small device: as large as it
can be.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from tests.kernels.products import narrow_products
from tfkd_fast.kernels import augment as images
from tfkd_fast.kernels import candidate_metrics as metrics
from tfkd_fast.kernels import distillation as distil
from tfkd_fast.kernels import norm_relu_pool as norms
from tfkd_fast.kernels import peer as peers
from tfkd_fast.kernels import rank_binned_targets as tables
from tfkd_fast.kernels import rank_candidates as ranks
from tfkd_fast.kernels import scale_gradient as scaling
from tfkd_fast.kernels import soft_target as soft

ARCHITECTURES = 80, 90
BATCH = 576  # several programs share it
HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
# 43: a row of an odd number of classes has no two numbers that can be loaded together.
CLASSES, LARGE = (10, 43, 100, 1000), [(100, DOUBLE), (1000, DOUBLE), (32768, SINGLE)]
RUN = JITFunction.run  # as Triton has it
Cases = Iterator[tuple[str, int, Callable[[], Any]]]
"""What they are, how many classes they have, and a call of a host function for each."""


class Driver:
    """No device, but an architecture."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # what is compiled for a device serves no other

    def get_current_stream(self, device: int) -> int:
        return 0


class Arguments:
    """Tensors that nothing reads; those that stand in a computation have its dtype."""

    def __init__(self, classes: int, dtype: torch.dtype, candidates: int = 3, batch: int = BATCH) -> None:
        def computed(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=DOUBLE if dtype == DOUBLE else SINGLE)

        self.logits = torch.empty(candidates, batch, classes, dtype=dtype)
        self.labels = torch.empty(batch, dtype=torch.int64)
        self.table, self.targets = computed(classes, classes), computed(batch, classes)
        self.similarity = torch.empty(classes, classes)
        self.teachers = torch.empty(2, batch, classes, dtype=dtype)
        self.weights = computed(batch, 2)
        self.one, self.each = computed(), computed(candidates)


def sized(*calls: Callable[[Arguments], None]) -> Cases:
    """Each call with each number of classes, in one dtype and then in the other."""
    for number, call in enumerate(calls):
        pairs = [(classes, (HALF, SINGLE)[(number + at) % 2]) for at, classes in enumerate(CLASSES)]
        for classes, dtype in pairs + LARGE:
            yield f"{call.__name__}, {dtype}", classes, partial(call, Arguments(classes, dtype))


def soft_target() -> Cases:
    def plain(a: Arguments) -> None:
        soft.soft_target_loss(a.logits, a.labels, a.table, None, None, True, "mean")

    def loss_of_each(a: Arguments) -> None:
        soft.soft_target_loss(a.logits, a.labels, a.targets, a.one, a.one, False, "none")

    def stats(a: Arguments) -> None:
        soft.soft_target_loss_with_stats(a.logits, a.labels, a.table, a.similarity, a.each, a.each, True, "mean")

    return sized(plain, loss_of_each, stats)


def distillation() -> Cases:
    def plain(a: Arguments) -> None:
        distil.distillation_loss(a.logits, a.teachers, None, None, a.one, a.one, "mean")

    def loss_of_each(a: Arguments) -> None:
        distil.distillation_loss(a.logits, a.teachers, a.labels, a.weights, a.each, a.each, "none")

    return sized(plain, loss_of_each)


def peer() -> Cases:
    def mean(a: Arguments) -> None:
        peers.peer_loss(a.logits, a.labels, a.one, a.each, False, "mean")

    def loss_of_each(a: Arguments) -> None:
        peers.peer_loss(a.logits, a.labels, a.one, a.one, True, "none")

    yield from sized(mean, loss_of_each)
    yield "few samples", 100, partial(mean, Arguments(100, SINGLE, candidates=16, batch=8))


def candidate_metrics() -> Cases:
    def all_metrics(a: Arguments) -> None:
        metrics.candidate_metrics(a.logits, a.labels)

    return sized(all_metrics)


def rank_binned_targets() -> Cases:
    for classes, dtype in product((10, 100, 1000), (HALF, SINGLE, DOUBLE)):
        masses = torch.empty(3, 4, dtype=dtype)
        of = torch.empty(classes, classes, dtype=dtype), masses[:, 0], masses, [1, 2, 4, 8]
        yield f"tables, {dtype}", classes, partial(tables.rank_binned_targets, *of)


def rank_candidates() -> Cases:
    for criteria, dtype in product((3, 1), (SINGLE, DOUBLE)):
        of = torch.empty(100, criteria, dtype=dtype), [True, False, True][:criteria], [1.0, 0.5, 1.0][:criteria]
        yield f"ranks, {dtype}", 0, partial(ranks.rank_candidates, *of)


def augment() -> Cases:
    for channels, (of, dtype) in product((1, 2, 3, 4), enumerate((HALF, SINGLE, DOUBLE, torch.float16))):
        flip = (channels + of) % 2 == 1
        scale = torch.empty(channels), torch.empty(channels)
        of = torch.empty(5, 32, 32, channels, dtype=torch.uint8), torch.empty(2, 3, dtype=torch.int64)
        draw = torch.empty(3, dtype=torch.int64)
        yield f"C={channels} {dtype}", 0, partial(images.augment, *of, draw, 4, flip, *scale, dtype)


def norm_relu_pool() -> Cases:
    sizes, forms = ((12, HALF), (64, HALF), (64, SINGLE)), ((True, False), (False, False), (False, True))
    for (channels, dtype), (pool, residual) in product(sizes, forms):
        x = torch.empty(8, channels, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
        numbers = [torch.empty(channels) for _ in range(4)]

        def both(x: Tensor = x, numbers: list[Tensor] = numbers, pool: bool = pool, residual: bool = residual) -> None:
            y, *saved = norms.norm_relu_pool(x, *numbers, 0.1, 1e-5, pool, x if residual else None)
            norms.norm_relu_pool_backward(y, x, numbers[0], *saved, pool, residual)

        yield f"C={channels} pool={pool} residual={residual} {dtype}", channels, both


def scale_gradient() -> Cases:
    for dtype, axes in product((HALF, SINGLE, DOUBLE), (0, 2)):
        gradient = torch.empty(3, 64, 100, dtype=dtype)
        upstream = torch.empty(gradient.shape[:axes], dtype=DOUBLE if dtype == DOUBLE else SINGLE)
        yield f"{axes} axes, {dtype}", 100, partial(scaling.scale_gradient, gradient, upstream)


@triton.jit
def _holds_little(numbers, length: tl.constexpr):
    tl.store(numbers + tl.arange(0, length), 1.0)


@triton.jit
def _holds_too_much(numbers, length: tl.constexpr):
    """A thread has 64 numbers before it stores the first."""
    at = tl.arange(0, length)
    loaded = tl.load(numbers + at)
    tl.store(numbers + at, loaded * tl.sum(loaded))


@triton.jit
def _changes_a_type(numbers, length: tl.constexpr):
    number = 0
    for at in range(length):
        number = tl.load(numbers + at)
    tl.store(numbers, number)


@triton.jit(do_not_specialize=["rows"])
def _multiplies_sizes(numbers, rows, length: tl.constexpr, row_length: tl.constexpr):
    """Two sizes are multiplied in 32 bits; one of them and a number that is fixed may be."""
    for row in range(tl.program_id(0), rows, 4):
        tl.store(numbers + row * row_length, 1.0)
        if row > 7:  # noqa: SIM108
            first = row * rows
        else:
            first = row
        tl.store(numbers + first + tl.arange(0, length), 1.0)


def self_check() -> Cases:
    """What a test that finds nothing wrong would have found."""
    for kernel in (_holds_little, _holds_too_much, _changes_a_type):
        call = partial(kernel[(1,)], torch.empty(2048), length=2048, num_warps=1, maxnreg=32)
        yield "self-check", 0, call
    yield "self-check", 0, partial(_multiplies_sizes[(1,)], torch.empty(2048), 5, length=32, row_length=8, num_warps=1)


def compilations(cases: Cases) -> Iterator[dict[str, Any]]:
    """What each launch is compiled to, or why it is not. For a launch like an earlier one there is no entry."""
    done: list[dict[str, Any]] = []

    def compile_only(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        entry: dict[str, Any] = {"module": kernel.fn.__module__.rpartition(".")[2], "kernel": kernel.fn.__name__}
        output = StringIO()
        try:
            with redirect_stdout(output):
                compiled = RUN(kernel, *args, grid=grid, warmup=True, **kwargs)
        except Exception as error:
            done.append(entry | {"error": f"{type(error).__name__}: {error}"})
            return
        if log := output.getvalue():  # of ptxas
            found = {
                "registers": r"Used (\d+) reg",
                "stored": r"(\d+) bytes spill st",
                "loaded": r"(\d+) bytes spill lo",
            }
            counts = {name: sum(map(int, re.findall(pattern, log))) for name, pattern in found.items()}
            done.append(entry | counts | {"narrow": narrow_products(compiled.asm["ttir"])})

    JITFunction.run = compile_only
    # Two and two: otherwise what alternates between cases, as a dtype does, would always be compiled for the same one.
    for number, (name, classes, call) in enumerate(cases):
        architecture = ARCHITECTURES[number // 2 % 2]
        driver.set_active(Driver(architecture))
        call()
        yield from ({"architecture": architecture, "case": name, "classes": classes} | entry for entry in done)
        done.clear()


if __name__ == "__main__":
    os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
    for family in sys.argv[1:]:
        for entry in compilations(globals()[family]()):
            print(json.dumps(entry))
