"""What the tests of the losses share: tolerances, and calls of one function with every backend."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload

from tfkd_fast.ops import fused

# Relative to the largest entry. float64: a few dozen roundings of 1e-16. float32: a few dozen of 6e-8. Halves: one
# rounding of the gradient, 2^-9 (bfloat16) or 2^-12 (float16), and one of its product with the upstream gradient.
# On a GPU exp2 and log2 are approximations of 2^-22, which a loss takes times T^2, 16 in these tests.
APPROXIMATION = 16 * 2.0**-22 if torch.cuda.is_available() else 0.0
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    atol = tolerance * max(scale, 1e-2) + (APPROXIMATION if tolerance == TOLERANCE[torch.float32] else 0.0)
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0.0, atol=atol, equal_nan=True)


def call(function: Callable[..., Any], backend: Any, *args: Any, **keywords: Any) -> Any:
    """The function on the backend's device, from tensors and to tensors on the CPU; gradients flow back."""
    args, keywords = to((args, keywords), backend.device)
    return to(function(*args, backend=backend.name, **keywords), torch.device("cpu"))


def to(values: Any, device: torch.device) -> Any:
    """Tensors in nested tuples and dictionaries, on another device."""
    if isinstance(values, Tensor):
        return values.to(device)
    if isinstance(values, dict):
        return {name: to(value, device) for name, value in values.items()}
    if isinstance(values, tuple):
        items = [to(value, device) for value in values]
        return type(values)(*items) if hasattr(values, "_fields") else tuple(items)
    return values


def operator_of(backend: Any, name: str) -> OpOverload:
    """The operator that `torch.library.opcheck` is to check."""
    if backend.name == "reference" or (backend.name == "cuda" and backend.device.type == "cpu"):
        pytest.skip("no registered operator")
    return fused.overload(fused.NAMESPACES[backend.name], name)


def assert_graph_follows(step: Callable[[], tuple[Tensor, ...]], change: Callable[[], object]) -> None:
    """A captured step gives what an eager one does once its inputs have changed, and the eager one never waits."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    change()
    graph.replay()
    torch.cuda.set_sync_debug_mode("error")
    try:
        eager = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(captured, eager)
