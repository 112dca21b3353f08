"""The gradient that a kernel returned with a loss, times what comes to the loss from above; for CUDA tensors."""

import torch
from torch import Tensor
from torch._ops import OpOverload

from tfkd_fast.ops import backends, fused


def scale_gradient(gradient: Tensor, upstream: Tensor, *, backend: str | None = None) -> None:
    """Multiply a gradient by the gradient of its loss, in place and without a wait of the host.

    `loss.backward()` sends ones: then the backends cuda and triton read them alone, and the gradient stays as it is.
    A product is rounded once.

    Args:
        gradient: (B,C) or (P,B,C) float32, float64, bfloat16 or float16, contiguous.
        upstream: one number for all of it, (), or its first axes, (P,), (B,) or (P,B): float32, or float64 for a
            float64 gradient.
        backend: an operator backend; None picks the fastest that serves the tensors.
    """
    backends.select("scale_gradient", backend, gradient)(gradient, upstream)


# The definition.


def _reference(gradient: Tensor, upstream: Tensor) -> None:
    gradient.mul_(upstream.reshape(upstream.shape + (1,) * (gradient.dim() - upstream.dim())))


# The fused backends.


def _fused(operator: OpOverload, gradient: Tensor, upstream: Tensor) -> None:
    operator(gradient, upstream)


def _fake(gradient: Tensor, upstream: Tensor) -> None:
    return None


fused.define("scale_gradient", "scale_gradient", "(Tensor(a!) gradient, Tensor upstream) -> ()", _fake)
torch.library.impl(f"{fused.NAMESPACES['cuda']}::scale_gradient", "CPU", _reference)
backends.register("scale_gradient", "reference", _reference)
fused.register("scale_gradient", _fused, only=("cuda", "triton"))
