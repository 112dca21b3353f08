"""Where and in which precision a run computes."""

import platform
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tfkd_fast.errors import UserError


@dataclass(frozen=True)
class Compute:
    """The resolved device and precision of a run. Images and weights are channels-last on every device."""

    device: torch.device
    dtype: torch.dtype  # of images and of autocast regions; weights stay float32

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

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16)


def cpu_capabilities() -> dict[str, Any]:
    """Instruction sets of this processor, as far as torch tells (empty where it does not)."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    return dict(tell()) if tell else {}


def resolve_compute(device: str, precision: str) -> Compute:
    """`auto` takes CUDA where there is a device, and bf16 where the hardware multiplies it natively."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch sees no CUDA device: use --device cpu or auto")
    chosen = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
    if precision == "auto":
        precision = "bf16" if _has_native_bf16(chosen) else "fp32"
    return Compute(chosen, torch.bfloat16 if precision == "bf16" else torch.float32)


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = cpu_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
