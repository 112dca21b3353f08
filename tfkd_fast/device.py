"""The device and the precision of a run, and what torch's compiler and determinism need for it."""

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tfkd_fast.errors import UserError
from tfkd_fast.files import user_cache
from tfkd_fast.machine import available_memory
from tfkd_fast.served import check_device, check_precision

RECOMPILE_LIMIT = 64
"""Least `torch._dynamo.config.recompile_limit` for compiled networks: torch's default is 8, and `education` with five
grades needs nine graphs."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, from malloc.h."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Compute:
    """The resolved device and precision of a run. Images and weights are channels-last on every device."""

    device: torch.device
    """Device of images and weights."""
    dtype: torch.dtype
    """Dtype of images and of autocast regions, float32 or bfloat16; weights are always float32."""
    compile: bool = False
    """Whether training steps are compiled by torch.compile."""

    @property
    def precision(self) -> str:
        """The precision as recipes name it: "bf16" or "fp32"."""
        return "bf16" if self.dtype is torch.bfloat16 else "fp32"

    @property
    def device_name(self) -> str:
        """The product name of the GPU, or `processor_name`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else processor_name()

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, its weights of four axes in channels-last memory format, and return it."""
        model.to(self.device)
        for tensor in chain(model.parameters(), model.buffers()):
            if tensor.data.dim() == 4:  # torch would convert those of five axes, too, which have no such format
                tensor.data = tensor.data.to(memory_format=torch.channels_last)
        return model

    def compile_network(self, network: Callable[[Tensor], Result], batch_size: int) -> Callable[[Tensor], Result]:
        """Return the network compiled for batches of `batch_size`, or as it is without `compile`.

        A batch of another size, such as the last one of an epoch, runs without compilation.
        """
        if not self.compile:
            return network
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        compiled = torch.compile(network, fullgraph=True, dynamic=False)

        def forward(images: Tensor) -> Result:
            return (compiled if images.shape[-4] == batch_size else network)(images)

        return forward

    def autocast(self) -> torch.autocast:
        """Return an autocast region of the run's precision; in float32 it changes nothing."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16)


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Make torch use deterministic algorithms while the context is open, or allow faster ones.

    On CUDA the same run then gives the same bits; on the CPU it always does.
    """
    checks: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), checks.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    changes = wanted != before[0]  # setting it again would import the compiler, which takes seconds
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    if changes:
        torch.use_deterministic_algorithms(wanted)
    checks.fill_uninitialized_memory = False  # a debugging aid, and slow
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        if changes:
            torch.use_deterministic_algorithms(before[0])
        checks.fill_uninitialized_memory = before[1]
        torch.backends.cudnn.benchmark = benchmark


def cpu_capabilities() -> dict[str, Any]:
    """Return the instruction sets of this processor as torch reports them; empty if it does not."""
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)
    return dict(get_capabilities()) if get_capabilities else {}


def processor_name() -> str:
    """Return the product name of the processor, with its family and model where Linux tells them.

    A virtual machine often names the product alone, such as "AMD EPYC", which several generations share.
    """
    name = str(cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return name
    first = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    if "cpu family" not in first or "model" not in first:  # as on ARM
        return first.get("model name", name)
    return f"{first.get('model name', name)} (family {first['cpu family']}, model {first['model']})"


def resolve_compute(device: str, precision: str, compile_mode: str = "off") -> Compute:
    """Resolve the settings of a recipe to a device and a precision.

    Compiled code is kept in the user's cache for later processes, unless TORCHINDUCTOR_CACHE_DIR is set. On the CPU
    this process keeps the memory that it frees, see `keep_freed_memory`.

    Args:
        device: "cpu", "cuda" or "auto": CUDA if there is a device.
        precision: "fp32", "bf16" or "auto": bf16 if the hardware multiplies it natively.
        compile_mode: "on", "off" or "auto": only on CUDA, because on the CPU the operators of this package and torch's
            own are faster than compiled code.

    Raises:
        UserError: CUDA was asked for and there is none, or a device or precision that is not served.
    """
    try:
        check_device(device := str(device))  # a program may hand over torch.device("cuda:1")
        check_precision(precision := str(precision))
    except ValueError as error:
        raise UserError(str(error)) from None
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch sees no CUDA device: use --device cpu or auto")
    chosen = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
    if precision == "auto":
        precision = "bf16" if _has_native_bf16(chosen) else "fp32"
    if chosen.type == "cpu":
        keep_freed_memory()
    compiles = compile_mode == "on" or (compile_mode == "auto" and chosen.type == "cuda")
    if compiles:
        _keep_compiled_code()
    return Compute(chosen, torch.bfloat16 if precision == "bf16" else torch.float32, compiles)


def keep_freed_memory() -> None:
    """Have glibc's malloc keep what this process frees for its next tensors; with another C library nothing changes.

    By default large tensors go back to the system, which clears every page that it hands out again: a step of a network
    on the CPU frees and asks for thousands of pages. Tensors above 1 GiB still go back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)  # the latter is the most of older ones


def _keep_compiled_code() -> None:
    """Let torch keep compiled code in the user's cache, or where torch does so by itself for a user without a home.

    Called before torch first imports a part of its compiler, which sets the variable itself if nobody has.
    """
    with suppress(RuntimeError):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache() / "compile"))


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = cpu_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes; of the CPU what this process may still use, `available_memory`."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
