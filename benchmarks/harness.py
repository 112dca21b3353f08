"""How an operator is measured: beside its rivals, in the same run.

A case is one operator at one shape. Its variants are timed in turns, in blocks of at least a millisecond, each first in
its turn, so that a slow moment of the machine hits all of them; the figure is the median. Calls rotate through several
sets of inputs, so that large ones come from memory, as in training; small ones are served by the caches, as logits just
computed are. What a call allocates is part of it. Temperatures and weights are tensors, as a controller sets them.

The floor is the bytes that must move: each input read once, each result written once. A plain copy that moves as many
is timed in the same turns: into memory in use (`copy_`), and into new memory (`clone`), which on a processor the system
clears first. A machine does not copy at one rate: it depends on the size, and on what its memory has been through.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tfkd_fast.ops import backends

OURS = ("cpp", "cuda", "triton")
EAGER, COMPILED = "eager", "torch.compile"
COPY, CLONE = "copy", "clone"
ALONE = ", operator alone"
"""How the name of a variant ends that leaves autograd out."""

NO_LAUNCHES = ("Activity Buffer Request", "Instrumentation", "Resource")
"""How the names of a profiler's own entries among those of the device begin."""

Call = Callable[[int], Any]
"""One call of a variant on the inputs of this index."""

BLOCK_SECONDS = 1e-3
MOST_CALLS_OF_BLOCK = 60
"""On a GPU: so many calls take Python less time than the device needs for the backlog before them."""
FEWEST_ROUNDS, MOST_ROUNDS = 5, 101
# Rotated inputs take twice the last cache of the processors and GPUs in use, 32 to 64 MiB, but some memory is left.
ROTATED_BYTES, MOST_BYTES = 128 << 20, 2 << 30


class Case(NamedTuple):
    """One operator at one shape."""

    operator: str
    shape: str
    dtype: torch.dtype
    bytes_moved: int
    """Inputs read once and results written once, in bytes."""
    variants: Callable[["Case", torch.device], dict[str, Call]]
    """Every variant that runs on a device."""
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def name(self) -> str:
        return f"{self.operator} {self.shape} {short(self.dtype)}"

    @property
    def sets(self) -> int:
        """How many sets of inputs the calls rotate through."""
        most = max(2, MOST_BYTES // self.bytes_moved)
        return min(most, max(2, -(-ROTATED_BYTES // self.bytes_moved)), 8)


class Timing(NamedTuple):
    """What was measured of one variant."""

    seconds: list[float]
    """Of one call, a round each."""
    launches: int | None
    """Kernels of one call on a GPU."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


def short(dtype: torch.dtype) -> str:
    """Such as fp32."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float64: "fp64", torch.float16: "fp16"}[dtype]


def our_backends(operator: str, device: torch.device, dtype: torch.dtype = torch.float32) -> list[str]:
    """Our backends that serve the device, in C++ or on a GPU: an interpreter is not worth a measurement."""
    ready = {
        status.name
        for one in backends.status(device, dtype)
        if one.name == operator
        for status in one.backends
        if status.state != "refused" and backends.DEVICES.get(status.name) == device.type
    }
    return [name for name in OURS if name in ready]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """By torch.compile, for the shapes of this case alone."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def gradient_of(loss: Callable[..., Tensor], arguments: Sequence[tuple[Any, ...]]) -> Call:
    """Loss and gradient of each set of arguments, of which the first are the logits."""

    def call(i: int) -> Any:
        logits, *others = arguments[i]
        value = loss(logits, *others)
        return torch.autograd.grad(value if value.dim() == 0 else value.sum(), logits)

    return call


def our_losses(
    case: Case, device: torch.device, loss: Callable[..., Tensor], arguments: Sequence[tuple[Any, ...]]
) -> dict[str, Call]:
    """Loss and gradient by each of our backends, and on a GPU without autograd, too: what that adds has goals of its
    own."""
    functions = {name: partial(loss, backend=name) for name in our_backends(case.operator, device)}
    calls = {name: gradient_of(function, arguments) for name, function in functions.items()}
    if device.type == "cuda":
        detached = [(logits.detach(), *others) for logits, *others in arguments]
        calls |= {f"{name}{ALONE}": result_of(function, detached) for name, function in functions.items()}
    return calls


def is_ours(variant: str) -> bool:
    """Whether a variant is one of our backends, alone or not."""
    return variant.removesuffix(ALONE) in OURS


def result_of(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Call:
    """The result for each set of arguments."""
    return lambda i: function(*arguments[i])


@cache
def measured(case: Case, device: torch.device, seconds: float, with_compiled: bool = True) -> dict[str, Timing]:
    """Every variant of a case, and copies, in interleaved rounds of about so many seconds together; measured once."""
    variants = case.variants(case, device) | copies(case, device)
    if not with_compiled:
        variants.pop(COMPILED, None)
    clock = _gpu_block if device.type == "cuda" else _cpu_block
    inner: dict[str, int] = {}
    for name, call in variants.items():
        for i in range(case.sets):
            call(i)  # compiles, and first touches memory
        inner[name] = max(1, round(BLOCK_SECONDS / min(clock(call, 1, case.sets) for _ in range(2))))
        if device.type == "cuda":
            inner[name] = min(inner[name], MOST_CALLS_OF_BLOCK)
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    for turn in range(MOST_ROUNDS):
        if turn >= FEWEST_ROUNDS and time.perf_counter() > end:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(clock(variants[name], inner[name], case.sets))
    launches = {name: _launches(call) if device.type == "cuda" else None for name, call in variants.items()}
    return {name: Timing(times[name], launches[name]) for name in names}


def copies(case: Case, device: torch.device) -> dict[str, Call]:
    """Plain copies that read and write as many bytes as the case must."""
    sources = [torch.ones(case.bytes_moved // 2, dtype=torch.uint8, device=device) for _ in range(case.sets)]
    target = torch.ones_like(sources[0])
    return {COPY: lambda i: target.copy_(sources[i]), CLONE: lambda i: sources[i].clone()}


def _cpu_block(call: Call, repeats: int, sets: int) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    for i in range(repeats):
        call(i % sets)
    return (time.perf_counter() - started) / repeats


def _gpu_block(call: Call, repeats: int, sets: int) -> float:
    """Seconds of one call on the device: it begins with a backlog, so that it does not wait for Python."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(20_000_000)  # cycles, about 10 ms
    begin.record()
    for i in range(repeats):
        call(i % sets)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def _launches(call: Call) -> int:
    """Kernels, copies and fills of one call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        call(0)
        torch.cuda.synchronize()
    on_device = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.name.startswith(NO_LAUNCHES) for event in on_device)
