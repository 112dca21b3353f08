"""The update of one tensor by stochastic gradient descent with momentum."""

import torch
from torch import Tensor

from tfkd_fast.ops import backends, checks, fused


@torch.no_grad()
def sgd_step(
    weight: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    *,
    rate: float,
    decay: float = 0.0,
    factor: float = 0.9,
    nesterov: bool = False,
    backend: str | None = None,
) -> None:
    """Update a weight and its momentum in place, as `torch.optim.SGD` does without dampening.

        d = gradient + decay * weight;  momentum = factor * momentum + d;  weight -= rate * v

    where v is the new momentum, or d + factor * momentum with `nesterov` (Sutskever et al., ICML 2013). A momentum of
    zero stands for torch's first step.

    Args:
        weight: floating point, any shape.
        gradient, momentum: of the shape and dtype of the weight.
        rate: the learning rate.
        decay: the weight decay.
        factor: the momentum coefficient.
        backend: an operator backend; None picks the fastest that serves the tensors: cpp for float32 without gaps in
            memory.

    Raises:
        ValueError: for shapes or dtypes that differ, and from cpp, named as the backend, for tensors that it does not
            serve; TypeError for arguments of other types.
        RuntimeError: from cpp, named as the backend, for forward-mode differentiation; None takes the reference for it.
    """
    checks.check_tensors(weight=weight, gradient=gradient, momentum=momentum)
    checks.check_numbers(rate=rate, decay=decay, factor=factor)
    checks.check_flags(nesterov=nesterov)
    for name, tensor in (("gradient", gradient), ("momentum", momentum)):
        if tensor.shape != weight.shape or tensor.dtype != weight.dtype:
            raise ValueError(
                f"{name} must be {tuple(weight.shape)} {weight.dtype} as the weight is, "
                f"got {tuple(tensor.shape)} {tensor.dtype}"
            )
        checks.check_device(name, tensor, "weight", weight)
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got {weight.dtype}")
    checks.check_written(weight=weight, momentum=momentum)
    if momentum is weight:
        raise ValueError("momentum must be another tensor than weight: both are written to")
    differentiated = fused.has_tangent(weight, gradient, momentum)  # cpp has no forward derivative
    if backend is None and (differentiated or not _fits_cpp(weight, momentum)):
        backend = "reference"
    backends.select("sgd_step", backend, weight)(weight, gradient, momentum, rate, decay, factor, nesterov)


# The definition.


def _reference(
    weight: Tensor, gradient: Tensor, momentum: Tensor, rate: float, decay: float, factor: float, nesterov: bool
) -> None:
    direction = gradient.add(weight, alpha=decay)
    momentum.mul_(factor).add_(direction)
    if nesterov:
        direction.add_(momentum, alpha=factor)
    weight.add_(direction if nesterov else momentum, alpha=-rate)


# The compiled backend.


def _fits_cpp(weight: Tensor, momentum: Tensor) -> bool:
    strides = weight.stride()
    gapless = (  # the last way is the rule, and takes longer than a small update
        weight.is_contiguous()
        or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last))
        or torch.empty_like(weight, device="meta").stride() == strides  # as torch lays out what has no gaps
    )
    return weight.dtype == torch.float32 and gapless and momentum.stride() == strides


def _cpp(weight: Tensor, gradient: Tensor, momentum: Tensor, *settings: float) -> None:
    fused.refuse_tangent("sgd_step", weight, gradient, momentum)
    if not _fits_cpp(weight, momentum):
        raise ValueError(
            "backend 'cpp' cannot serve sgd_step: it serves float32 without gaps in memory, laid out alike"
        )
    _operator(weight, match_layout(weight, gradient), momentum, *settings)


def match_layout(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient in the memory layout of its weight, which a fused update needs; a copy if it differs."""
    return gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)


def _fake(weight: Tensor, gradient: Tensor, momentum: Tensor, *settings: float) -> None:
    return None


fused.define(
    "sgd_step",
    None,
    "(Tensor(a!) weight, Tensor gradient, Tensor(b!) momentum, float rate, float decay, float factor, bool nesterov) "
    "-> ()",
    _fake,
)
_operator = fused.overload(fused.NAMESPACES["cpp"], "sgd_step")
backends.register("sgd_step", "reference", _reference)
backends.register("sgd_step", "cpp", _cpp, refuses=fused.cpp_refuses, about=backends.native_library.about)
