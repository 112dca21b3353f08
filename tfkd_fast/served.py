"""The devices and precisions that a run can have, and why others cannot be asked for."""

from typing import Literal, get_args

from tfkd_fast.errors import nearest, shorten

DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "fp32", "bf16"]
DEVICES: tuple[str, ...] = get_args(DeviceName)
PRECISIONS: tuple[str, ...] = get_args(PrecisionName)

OTHER_DEVICES = ("directml", "hip", "hpu", "mps", "npu", "rocm", "tpu", "vulkan", "xla", "xpu")
"""Devices of torch that nothing here was tried on."""
SCALED = ("16", "16-mixed", "float16", "fp16", "half")
"""Names of the precision whose gradients are 0 where the loss is not scaled."""


def check_device(name: object) -> object:
    """The name of a device that is served.

    Raises:
        ValueError: for the name of another one, with the remedy.
    """
    if not isinstance(name, str) or name in DEVICES:
        return name
    kind, _, number = name.partition(":")
    if kind == "cuda":
        raise ValueError(
            f"a run takes the first GPU that it sees: set CUDA_VISIBLE_DEVICES={number}, and device to cuda"
        )
    if kind in OTHER_DEVICES:
        raise ValueError(f"there are no kernels for {kind} here, and nothing was tried there: set device to cpu")
    raise ValueError(f"no device {shorten(name)}: choose from {', '.join(DEVICES)}")


def check_precision(name: object) -> object:
    """The name of a precision that is served.

    Raises:
        ValueError: for the name of another one, with the remedy.
    """
    if not isinstance(name, str) or name in PRECISIONS:
        return name
    if name in SCALED:
        raise ValueError("gradients in fp16 want a loss that is scaled, which is not done here: set precision to bf16")
    raise ValueError(f"no precision {shorten(name)}: {nearest(name, PRECISIONS)}")
