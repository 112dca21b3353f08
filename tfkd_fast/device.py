"""Where and in which precision a run computes."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tfkd_fast.errors import UserError

# What torch compiles outlives the process, in the user's cache (XDG Base Directory Specification). Set here, because
# torch reads it when it first imports a part of its compiler, and many of its functions do.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfkd_fast"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE / "compile"))

MOST_GRAPHS = 64
"""That torch compiles in a process before it refuses. An education of five grades has nine; torch's own limit is 8."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Compute:
    """The resolved device and precision of a run. Images and weights are channels-last on every device."""

    device: torch.device
    dtype: torch.dtype  # of images and of autocast regions; weights stay float32
    compile: bool = False  # whether torch.compile makes the kernels of a training step

    @property
    def precision(self) -> str:
        return "bf16" if self.dtype is torch.bfloat16 else "fp32"

    @property
    def device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return str(cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine())

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, channels-last."""
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def compile_network(self, network: Callable[[Tensor], Result], batch_size: int) -> Callable[[Tensor], Result]:
        """The network, compiled for full batches if compiling was asked for; a smaller last batch runs as it is."""
        if not self.compile:
            return network
        torch._dynamo.config.recompile_limit = MOST_GRAPHS
        compiled = torch.compile(network, fullgraph=True, dynamic=False)

        def forward(images: Tensor) -> Result:
            return (compiled if images.shape[-4] == batch_size else network)(images)

        return forward

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16)


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """The same bits from the same run on CUDA, where torch trades them for speed; the CPU repeats them anyway."""
    checks: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), checks.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    changes = wanted != before[0]  # to say so again would import the compiler, which takes seconds
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    if changes:
        torch.use_deterministic_algorithms(wanted)
    checks.fill_uninitialized_memory = False  # a search for errors, and slow
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        if changes:
            torch.use_deterministic_algorithms(before[0])
        checks.fill_uninitialized_memory = before[1]
        torch.backends.cudnn.benchmark = benchmark


def cpu_capabilities() -> dict[str, Any]:
    """Instruction sets of this processor, as far as torch tells (empty where it does not)."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    return dict(tell()) if tell else {}


def resolve_compute(device: str, precision: str, compile_mode: str = "off") -> Compute:
    """`auto` takes CUDA where there is a device, bf16 where the hardware multiplies it natively, and compiles for CUDA.

    (On the CPU the operators of this package and torch's own are faster than compiled code.)
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch sees no CUDA device: use --device cpu or auto")
    chosen = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
    if precision == "auto":
        precision = "bf16" if _has_native_bf16(chosen) else "fp32"
    compiles = compile_mode == "on" or (compile_mode == "auto" and chosen.type == "cuda")
    return Compute(chosen, torch.bfloat16 if precision == "bf16" else torch.float32, compiles)


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = cpu_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
